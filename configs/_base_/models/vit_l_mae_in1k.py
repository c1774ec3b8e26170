# MAE's ViT-L for classification: the mean over the rows, and the norm after it.  Its patches of 16 px are resampled to
# 14 px, which the paper's models have.
_base_ = '../normalisation/imagenet.py'

model = dict(
    type='APTClassifier',
    num_classes=1000,
    data_preprocessor=dict(
        type='ClassDataPreprocessor',
        mean=_base_.img_mean,
        std=_base_.img_std,
        bgr_to_rgb=True,
        num_classes=1000,
        mixup_alpha=0.8,
        cutmix_alpha=1.0),
    backbone=dict(
        type='APTViT',
        patch_size=14,
        embed_dims=1024,
        depth=24,
        num_heads=16,
        drop_path_rate=0.2,
        final_norm=False,
        img_mean=_base_.img_mean,
        img_std=_base_.img_std,
        num_scales=1,
        thresholds=()),
    pooling='mean',
    loss=dict(label_smoothing=0.1))
