# A small plain ViT for the classification demo at 192 px: 12 x 12 cells, from random weights.
_base_ = ['./vit_cls.py', '../normalisation/imagenet.py']
model = dict(
    num_classes=10,
    data_preprocessor=dict(mean=_base_.img_mean, std=_base_.img_std, num_classes=10),
    backbone=dict(
        img_size=192,
        pretrain_img_size=192,
        embed_dims=128,
        depth=6,
        num_heads=4,
        img_mean=_base_.img_mean,
        img_std=_base_.img_std))
