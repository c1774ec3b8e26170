# The COCO detector in small, from random weights on two CPU cores: trained with APT from the start, all parameters.
_base_ = './eva02_ti_demo_det.py'
# A patch holds more of a scene of 256 px than of a photograph at 1536, so the thresholds are above the paper's.
model = dict(backbone=dict(num_scales=4, thresholds=(3.5, 3.5, 3.0)))
