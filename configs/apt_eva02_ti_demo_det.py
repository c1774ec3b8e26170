# The COCO detector in small, from random weights on two CPU cores: trained with APT from the start, all parameters.
_base_ = './eva02_ti_demo_det.py'
# Scenes of 256 px hold fewer grey levels a patch than photographs of 1536 px, so the thresholds are not the paper's.
model = dict(backbone=dict(num_scales=4, thresholds=(4.5, 4.0, 3.5)))
