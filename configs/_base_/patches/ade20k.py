# Segmentation at 512 and 640 px: patches of 16, 32 and 64 px, and the thresholds of the paper's camera-ready version,
# fine to coarse.  To find others: docs/thresholds.md.
patches = dict(num_scales=3, thresholds=(5.75, 4.0))
