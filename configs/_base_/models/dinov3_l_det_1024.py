# The detector of dinov3_b_det_1024.py in large.
_base_ = './dinov3_b_det_1024.py'
model = dict(
    backbone=dict(
        embed_dims=1024,
        depth=24,
        num_heads=16,
        global_block_indexes=(5, 11, 17, 23),
        drop_path_rate=0.4,
        with_cp=True),
    neck=dict(in_channels=1024))
