# The ADE20K segmentor in small, from random weights on two CPU cores: trained with APT from the start, all parameters.
_base_ = ['./eva02_ti_demo_seg.py', '_base_/patches/demo_seg.py']
model = dict(backbone=_base_.patches)
