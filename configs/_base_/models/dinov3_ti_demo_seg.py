# The demo's segmentor on a tiny DINOv3, from random weights: its LayerScale starts at 1, because 1e-5 would not learn.
_base_ = './eva02_ti_demo_seg.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='APTDINOv3',
        img_size=256,
        embed_dims=192,
        depth=12,
        num_heads=3,
        layer_scale=1.0,
        out_indices=(3, 5, 7, 11),
        img_mean=_base_.img_mean,
        img_std=_base_.img_std))
