# The demo's segmentor on a tiny DINOv3, from random weights on two CPU cores: trained with APT from the start.
_base_ = ['./dinov3_ti_demo_seg.py', '_base_/patches/demo_seg.py']
model = dict(backbone=_base_.patches)
