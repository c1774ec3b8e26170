# APT-EVA-02-B on ADE20K at 512: the official fine-tuning from the pre-trained backbone, as of its dense twin.  Merged
# patches count once: a small detector that learnt with them from the start was worse with them counted by their cells.
_base_ = ['./eva02_b_ade20k_512.py', '_base_/patches/ade20k_512.py']
model = dict(backbone=dict(_base_.patches, proportional_attention=False))
