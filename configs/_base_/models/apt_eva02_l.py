_base_ = './eva02_l.py'
# Patches of 16, 32, 64 and 128 px; the paper's thresholds on the entropy for detection at 1536, fine to coarse.
model = dict(backbone=dict(num_scales=4, thresholds=(2, 2, 0.3)))
