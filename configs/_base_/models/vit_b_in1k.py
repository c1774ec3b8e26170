# A ViT-B/16 with its classifier, as timm has it: vit_base_patch16_{224.augreg2,384.augreg}_in21k_ft_in1k.
_base_ = ['./vit_cls.py', '../normalisation/half.py']
model = dict(
    data_preprocessor=dict(mean=_base_.img_mean, std=_base_.img_std),
    backbone=dict(
        embed_dims=768,
        depth=12,
        num_heads=12,
        img_mean=_base_.img_mean,
        img_std=_base_.img_std))
