# The COCO detector in small, from random weights on two CPU cores: trained with APT from the start, all parameters.
_base_ = ['./eva02_ti_demo_det.py', '_base_/patches/demo_det.py']
model = dict(backbone=_base_.patches)
