# A ViT-H/14 of CLIP with its classifier, as timm has it: vit_huge_patch14_clip_{224,336}.laion2b_ft_in12k_in1k.
img_mean = [122.7709383, 116.7460125, 104.09373615]  # RGB, 0..255: images are normalised, and restored to be scored
img_std = [68.5005327, 66.6321579, 70.32316305]

model = dict(
    type='APTClassifier',
    num_classes=1000,
    data_preprocessor=dict(
        type='ClassDataPreprocessor',
        mean=img_mean,
        std=img_std,
        bgr_to_rgb=True,
        num_classes=1000),
    backbone=dict(
        type='APTViT',
        patch_size=14,
        embed_dims=1280,
        depth=32,
        num_heads=16,
        pre_norm=True,
        patch_bias=False,
        norm_eps=1e-5,
        img_mean=img_mean,
        img_std=img_std,
        num_scales=1,
        thresholds=()),
    pooling='class_token')
