# APT-EVA-02-L on ADE20K at 640: short fine-tuning of a dense segmentor, of the added parameters alone.  load_from: a
# checkpoint of eva02_l_ade20k_640.py.
_base_ = [
    '_base_/models/eva02_l_seg_640.py', '_base_/patches/ade20k_640.py', '_base_/datasets/ade20k_640.py',
    '_base_/schedules/apt_ade20k_4k.py', '_base_/default_runtime_seg.py'
]
model = dict(backbone=_base_.patches, trainable=_base_.added_parameters)
custom_hooks = [*_base_.custom_hooks, dict(type='CheckFrozenLoadedHook')]
