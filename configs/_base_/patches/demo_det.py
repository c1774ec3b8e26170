# The detection demo at 256 px: patches of 16, 32, 64 and 128 px, scored as in coco_1536.py, and thresholds that keep
# 70 % of the content of its training images.
patches = dict(num_scales=4, scorer='upsampling_error_max', thresholds=(4.2e-4, 4.2e-4, 4.2e-4))
