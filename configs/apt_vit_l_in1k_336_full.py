# APT-MAE-L/14 on ImageNet-1k at 336, trained with APT from MAE's pre-training.
_base_ = ['./vit_l_in1k_336_full.py', '_base_/patches/in1k.py']
model = dict(backbone=_base_.patches)
