# ViT-B/16 at 224: its grid of 14 x 14 cells is even, and no multiple of 4, so there are two sizes of patches.
patches = dict(num_scales=2, thresholds=(5.75,))
