# A small plain ViT for the classification demo at 192 px: 12 x 12 cells, from random weights.
img_mean = [123.675, 116.28, 103.53]  # of the image in RGB, 0..255: it is normalised, and restored to score patches
img_std = [58.395, 57.12, 57.375]

model = dict(
    type='APTClassifier',
    num_classes=10,
    data_preprocessor=dict(type='ClassDataPreprocessor', mean=img_mean, std=img_std, bgr_to_rgb=True, num_classes=10),
    backbone=dict(
        type='APTViT',
        img_size=192,
        pretrain_img_size=192,
        embed_dims=128,
        depth=6,
        num_heads=4,
        img_mean=img_mean,
        img_std=img_std,
        num_scales=1,
        thresholds=()),
    pooling='class_token')
