# Detection at 1536 px: patches of 16, 32, 64 and 128 px, and the paper's thresholds on the entropy, fine to coarse.
# To find others: docs/thresholds.md.
patches = dict(num_scales=4, thresholds=(2, 2, 0.3))
