_base_ = './eva02_l_seg_512.py'
# Patches of 16, 32 and 64 px; the thresholds of the paper's camera-ready version for segmentation, fine to coarse.
# For another share of tokens: python tools/analysis_tools/calibrate_thresholds.py --config CONFIG --kept 0.7
model = dict(backbone=dict(num_scales=3, thresholds=(5.75, 4.0)))
