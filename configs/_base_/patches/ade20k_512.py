# Segmentation at 512 px with EVA-02: patches of 16, 32 and 64 px, fine to coarse.
#
# The scorer is not the paper's.  After the short fine-tuning it loses less with as many tokens, and there is one number
# to turn: docs/results.md.  A threshold is a mean squared error of the 0..1 image.  The shares are those of 36
# photographs and not of ADE20K: docs/thresholds.md.  Attention that counts a merged patch by its cells is not the
# paper's either: without any training it takes most of what is lost away.
patches = dict(  # keeps 0.7
    num_scales=3, scorer='upsampling_error_max', proportional_attention=True, thresholds=(3.2e-4, 3.2e-4))
patches_half = dict(  # keeps 0.5
    num_scales=3, scorer='upsampling_error_max', proportional_attention=True, thresholds=(1.4e-3, 1.4e-3))
# The paper's: entropy in bits.  In a config of your own: model = dict(backbone=_base_.patches_paper)
patches_paper = dict(num_scales=3, scorer='entropy', thresholds=(5.75, 4.0), proportional_attention=False)
