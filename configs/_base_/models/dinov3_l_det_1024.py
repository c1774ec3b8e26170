# ViTDet's detector on DINOv3-L at 1024 px: windows, and ViTDet's four global blocks.  DINOv3 was trained with global
# attention in every block.
_base_ = './cascade_mask_rcnn_eva02.py'
model = dict(
    data_preprocessor=dict(pad_size_divisor=1024),
    backbone=dict(
        _delete_=True,
        type='APTDINOv3',
        img_size=1024,
        embed_dims=1024,
        depth=24,
        num_heads=16,
        window_size=16,
        global_block_indexes=(5, 11, 17, 23),
        drop_path_rate=0.4,
        with_cp=True,
        img_mean=_base_.img_mean,
        img_std=_base_.img_std),
    neck=dict(in_channels=1024))
