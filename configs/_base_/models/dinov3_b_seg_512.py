# UperNet on DINOv3-B: maps after four blocks, with DINOv3's last norm on each.
_base_ = './upernet_eva02.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='APTDINOv3',
        img_size=512,
        embed_dims=768,
        depth=12,
        num_heads=12,
        out_indices=(3, 5, 7, 11),
        drop_path_rate=0.15,
        img_mean=_base_.img_mean,
        img_std=_base_.img_std),
    neck=dict(embed_dim=768),
    decode_head=dict(in_channels=[768] * 4, channels=768),
    auxiliary_head=dict(in_channels=768))
