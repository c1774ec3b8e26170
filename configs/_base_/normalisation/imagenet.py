# How EVA-02, MAE, DINOv2 and DINOv3 want images, in RGB, 0..255: the data preprocessor normalises by these, and the
# patch chooser restores the image by them.  A config cannot import apt_dense/core/normalisation.py; a test compares
# the two.
img_mean = [123.675, 116.28, 103.53]
img_std = [58.395, 57.12, 57.375]
