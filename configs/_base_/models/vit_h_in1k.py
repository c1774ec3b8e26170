# A ViT-H/14 of CLIP with its classifier, as timm has it: vit_huge_patch14_clip_{224,336}.laion2b_ft_in12k_in1k.
_base_ = ['./vit_cls.py', '../normalisation/clip.py']
model = dict(
    data_preprocessor=dict(mean=_base_.img_mean, std=_base_.img_std),
    backbone=dict(
        patch_size=14,
        embed_dims=1280,
        depth=32,
        num_heads=16,
        pre_norm=True,
        patch_bias=False,
        norm_eps=1e-5,
        img_mean=_base_.img_mean,
        img_std=_base_.img_std))
