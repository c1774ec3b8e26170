# The segmentor of the ADE20K configs in small: 256 px, a tiny backbone, narrow heads, background and five classes; and
# sampling of hard pixels, which they do not have.
_base_ = './upernet_eva02.py'
num_classes = 6

model = dict(
    data_preprocessor=dict(size=(256, 256)),
    backbone=dict(
        img_size=256, embed_dims=192, depth=12, num_heads=3, out_indices=(3, 5, 7, 11), pretrain_img_size=256),
    neck=dict(embed_dim=192),
    decode_head=dict(
        in_channels=[192] * 4,
        channels=64,
        num_classes=num_classes,
        # Four fifths of the pixels are background: by the hard pixels alone the rarest class is learnt in time.
        sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=10000)),
    auxiliary_head=dict(in_channels=192, channels=64, num_classes=num_classes),
    test_cfg=dict(crop_size=(256, 256), stride=(171, 171)))
