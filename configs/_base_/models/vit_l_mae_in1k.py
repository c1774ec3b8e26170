# MAE's ViT-L for classification: the mean over the rows, and the norm after it.  Its patches of 16 px are resampled to
# 14 px, which the paper's models have.
_base_ = ['./vit_cls.py', '../normalisation/imagenet.py']
model = dict(
    data_preprocessor=dict(mean=_base_.img_mean, std=_base_.img_std, mixup_alpha=0.8, cutmix_alpha=1.0),
    backbone=dict(
        patch_size=14,
        embed_dims=1024,
        depth=24,
        num_heads=16,
        drop_path_rate=0.2,
        final_norm=False,
        img_mean=_base_.img_mean,
        img_std=_base_.img_std),
    pooling='mean',
    loss=dict(label_smoothing=0.1))
