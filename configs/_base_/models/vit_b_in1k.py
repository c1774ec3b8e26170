# A ViT-B/16 with its classifier, as timm has it: vit_base_patch16_{224.augreg2,384.augreg}_in21k_ft_in1k.
_base_ = '../normalisation/half.py'

model = dict(
    type='APTClassifier',
    num_classes=1000,
    data_preprocessor=dict(
        type='ClassDataPreprocessor',
        mean=_base_.img_mean,
        std=_base_.img_std,
        bgr_to_rgb=True,
        num_classes=1000),
    backbone=dict(
        type='APTViT',
        embed_dims=768,
        depth=12,
        num_heads=12,
        img_mean=_base_.img_mean,
        img_std=_base_.img_std,
        num_scales=1,
        thresholds=()),
    pooling='class_token')
