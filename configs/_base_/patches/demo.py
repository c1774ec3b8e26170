# The demo at 256 px: patches of 16, 32, 64 and 128 px.  One of them holds more of a small scene than of a photograph,
# so the thresholds are above the paper's.
patches = dict(num_scales=4, thresholds=(3.5, 3.5, 3.0))
