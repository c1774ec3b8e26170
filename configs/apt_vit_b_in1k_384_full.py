# APT-MAE-B/16 on ImageNet-1k at 384, trained with APT from MAE's pre-training.
_base_ = ['./vit_b_in1k_384_full.py', '_base_/patches/in1k.py']
model = dict(backbone=_base_.patches)
