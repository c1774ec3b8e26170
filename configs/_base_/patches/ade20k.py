# Segmentation with other encoders than EVA-02: the base patch, 2 and 4 times its side, and the thresholds of the
# paper's camera-ready version, fine to coarse.  To find others: docs/thresholds.md.
patches = dict(num_scales=3, thresholds=(5.75, 4.0))
