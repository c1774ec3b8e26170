# APT-EVA-02-B on COCO at 1536: the short fine-tuning of a trained dense detector, as in the paper's anonymous version:
# everything but the parameters that APT adds is frozen.  (Camera-ready version: apt_eva02_b_coco_entire.py.)  Set
# load_from to a checkpoint of eva02_b_coco.py.
_base_ = [
    '_base_/models/apt_eva02_b.py', '_base_/datasets/coco_instance_lsj.py', '_base_/schedules/apt_coco_3k.py',
    '_base_/default_runtime.py'
]
model = dict(trainable=['backbone.patch_embed.conv_down', 'backbone.patch_embed.zero_mlp'])
requires_load_from = True
custom_hooks = [dict(type='KeptTokensHook'), dict(type='BadDataHook'), dict(type='CheckFrozenLoadedHook')]
