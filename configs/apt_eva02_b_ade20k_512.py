# APT-EVA-02-B on ADE20K at 512: short fine-tuning of a dense segmentor, of the added parameters alone.  load_from: a
# checkpoint of eva02_b_ade20k_512.py.
_base_ = [
    '_base_/models/eva02_b_seg_512.py', '_base_/patches/ade20k_512.py', '_base_/datasets/ade20k_512.py',
    '_base_/schedules/apt_ade20k_3k.py', '_base_/default_runtime_seg.py'
]
model = dict(backbone=_base_.patches, trainable=_base_.added_parameters)
custom_hooks = [*_base_.custom_hooks, dict(type='CheckFrozenLoadedHook')]
train_dataloader = dict(batch_size=8)
