_base_ = './upernet_eva02.py'
model = dict(
    backbone=dict(
        embed_dims=768,
        depth=12,
        num_heads=12,
        out_indices=(3, 5, 7, 11),
        drop_path_rate=0.15),
    neck=dict(embed_dim=768),
    decode_head=dict(in_channels=[768] * 4, channels=768),
    auxiliary_head=dict(in_channels=768))
