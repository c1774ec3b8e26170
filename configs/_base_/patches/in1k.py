# Classification, grids that are multiples of 4: the base patch, 2 and 4 times its side, and the paper's thresholds,
# fine to coarse.  (Its public code has one configuration of its own, ViT-B at 384: num_scales=2, thresholds=(5.5,).)
patches = dict(num_scales=3, thresholds=(5.75, 4.0))
