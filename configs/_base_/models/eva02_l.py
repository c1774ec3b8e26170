_base_ = './cascade_mask_rcnn_eva02.py'
model = dict(
    backbone=dict(
        embed_dims=1024,
        depth=24,
        num_heads=16,
        global_block_indexes=(2, 5, 8, 11, 14, 17, 20, 23),
        drop_path_rate=0.4,
        with_cp=True),
    neck=dict(in_channels=1024))
