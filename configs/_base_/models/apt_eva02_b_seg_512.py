_base_ = './eva02_b_seg_512.py'
# Patches of 16, 32, 64 and 128 px.
model = dict(backbone=dict(num_scales=4, thresholds=(5.0, 4.5, 3.5)))
