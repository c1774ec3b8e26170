# The ADE20K segmentor in small, from random weights on two CPU cores: trained with APT from the start, all parameters.
_base_ = './eva02_ti_demo_seg.py'
# A patch holds more of a scene of 256 px than of a photograph, so the thresholds are those of the detection demo.
model = dict(backbone=dict(num_scales=4, thresholds=(3.5, 3.5, 3.0)))
