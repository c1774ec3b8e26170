_base_ = './cascade_mask_rcnn_eva02.py'
model = dict(
    backbone=dict(
        embed_dims=768,
        depth=12,
        num_heads=12,
        global_block_indexes=(1, 3, 5, 7, 9, 11),
        drop_path_rate=0.1),
    neck=dict(in_channels=768))
