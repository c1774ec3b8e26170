# ViTDet's detector on DINOv3-B at 1024 px: windows, and ViTDet's four global blocks.  DINOv3 was trained with global
# attention in every block.
_base_ = './cascade_mask_rcnn_eva02.py'
model = dict(
    data_preprocessor=dict(pad_size_divisor=1024),
    backbone=dict(
        _delete_=True,
        type='APTDINOv3',
        img_size=1024,
        embed_dims=768,
        depth=12,
        num_heads=12,
        window_size=16,
        global_block_indexes=(2, 5, 8, 11),
        drop_path_rate=0.1,
        with_cp=False,
        img_mean=_base_.img_mean,
        img_std=_base_.img_std),
    neck=dict(in_channels=768))
