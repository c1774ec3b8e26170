# The classification demo at 192 px: patches of 16, 32 and 64 px, and thresholds that keep 70 % of its tokens.
patches = dict(num_scales=3, thresholds=(4.0, 3.6))
