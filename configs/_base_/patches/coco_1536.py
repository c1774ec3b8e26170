# Detection at 1536 px: patches of 16, 32, 64 and 128 px, fine to coarse.
#
# The scorer is not the paper's.  With as many tokens it loses a sixth of what the entropy loses, and there is one
# number to turn: docs/results.md.  A threshold is a mean squared error of the 0..1 image: 1.8e-5 is about one grey
# level.  The shares are of the content, without padding, of 36 photographs and not of COCO (docs/thresholds.md); at
# 1024 px the same thresholds keep 0.8 and 0.6 of them.  Attention that counts a merged patch by its cells is not the
# paper's either: without any training it takes most of what is lost away.
patches = dict(  # keeps 0.7
    num_scales=4, scorer='upsampling_error_max', proportional_attention=True, thresholds=(1.8e-5, 1.8e-5, 1.8e-5))
patches_half = dict(  # keeps 0.5
    num_scales=4, scorer='upsampling_error_max', proportional_attention=True, thresholds=(9e-5, 9e-5, 9e-5))
# The paper's: entropy in bits.  Keeps 0.97.  In a config of your own: model = dict(backbone=_base_.patches_paper)
patches_paper = dict(num_scales=4, scorer='entropy', thresholds=(2, 2, 0.3), proportional_attention=False)
