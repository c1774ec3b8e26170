# UperNet on DINOv3-L: maps after four blocks, with DINOv3's last norm on each.
_base_ = './upernet_eva02.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='APTDINOv3',
        img_size=512,
        embed_dims=1024,
        depth=24,
        num_heads=16,
        out_indices=(7, 11, 15, 23),
        drop_path_rate=0.2,
        img_mean=_base_.img_mean,
        img_std=_base_.img_std),
    neck=dict(embed_dim=1024),
    decode_head=dict(in_channels=[1024] * 4, channels=1024),
    auxiliary_head=dict(in_channels=1024))
