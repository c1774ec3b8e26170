# UperNet on DINOv2-L with patches of 16 px: the converter resamples its patches of 14 px and its table of 37 x 37
# positions, so that a window of 512 px is 32 x 32 cells.
_base_ = './upernet_eva02.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='APTViT',
        img_size=512,
        embed_dims=1024,
        depth=24,
        num_heads=16,
        pretrain_img_size=512,  # the size of the position table
        layer_scale=1e-5,
        out_indices=(7, 11, 15, 23),
        drop_path_rate=0.2,
        img_mean=_base_.img_mean,
        img_std=_base_.img_std),
    neck=dict(embed_dim=1024),
    decode_head=dict(in_channels=[1024] * 4, channels=1024),
    auxiliary_head=dict(in_channels=1024))
