# The segmentation demo at 256 px: patches of 16, 32, 64 and 128 px, and thresholds that keep 70 % of the content of its
# training images.
patches = dict(num_scales=4, scorer='upsampling_error_max', thresholds=(1.3e-4, 1.3e-4, 1.3e-4))
