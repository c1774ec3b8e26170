# A ViT-L/14 of CLIP with its classifier, as timm has it: vit_large_patch14_clip_{224,336}.laion2b_ft_in12k_in1k.
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
        patch_size=14,
        embed_dims=1024,
        depth=24,
        num_heads=16,
        pre_norm=True,
        patch_bias=False,
        norm_eps=1e-5,
        img_mean=_base_.img_mean,
        img_std=_base_.img_std,
        num_scales=1,
        thresholds=()),
    pooling='class_token')
