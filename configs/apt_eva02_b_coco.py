# APT-EVA-02-B on COCO at 1536: short fine-tuning of a dense detector, of the added parameters alone.  load_from: a
# checkpoint of eva02_b_coco.py.
_base_ = [
    '_base_/models/eva02_b.py', '_base_/patches/coco_1536.py', '_base_/datasets/coco_instance_lsj.py',
    '_base_/schedules/apt_coco_3k.py', '_base_/default_runtime.py'
]
model = dict(backbone=_base_.patches, trainable=_base_.added_parameters)
custom_hooks = [*_base_.custom_hooks, dict(type='CheckFrozenLoadedHook')]
