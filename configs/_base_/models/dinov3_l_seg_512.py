# The segmentor of dinov3_b_seg_512.py in large.
_base_ = './dinov3_b_seg_512.py'
model = dict(
    backbone=dict(embed_dims=1024, depth=24, num_heads=16, out_indices=(7, 11, 15, 23), drop_path_rate=0.2),
    neck=dict(embed_dim=1024),
    decode_head=dict(in_channels=[1024] * 4, channels=1024),
    auxiliary_head=dict(in_channels=1024))
