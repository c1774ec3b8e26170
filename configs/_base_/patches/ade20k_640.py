# Segmentation at 640 px with EVA-02: patches of 16, 32 and 64 px, fine to coarse.
#
# The scorer is not the paper's.  After the short fine-tuning it loses less with as many tokens, and there is one number
# to turn: docs/results.md.  A threshold is a mean squared error of the 0..1 image.  The shares are those of 36
# photographs and not of ADE20K: docs/thresholds.md.
patches = dict(num_scales=3, scorer='upsampling_error_max', thresholds=(1.3e-4, 1.3e-4))  # keeps 0.7
patches_half = dict(num_scales=3, scorer='upsampling_error_max', thresholds=(6.9e-4, 6.9e-4))  # keeps 0.5
# The paper's: entropy in bits.  In a config of your own: model = dict(backbone=_base_.patches_paper)
patches_paper = dict(num_scales=3, scorer='entropy', thresholds=(5.75, 4.0))
