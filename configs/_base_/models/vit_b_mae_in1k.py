# MAE's ViT-B/16 for classification: the mean over the rows, and the norm after it.
_base_ = ['./vit_cls.py', '../normalisation/imagenet.py']
model = dict(
    data_preprocessor=dict(mean=_base_.img_mean, std=_base_.img_std, mixup_alpha=0.8, cutmix_alpha=1.0),
    backbone=dict(
        embed_dims=768,
        depth=12,
        num_heads=12,
        drop_path_rate=0.1,
        final_norm=False,
        img_mean=_base_.img_mean,
        img_std=_base_.img_std),
    pooling='mean',
    loss=dict(label_smoothing=0.1))
