# APT-EVA-02-L on ADE20K at 512: the short fine-tuning of a trained dense segmentor, as in the paper's anonymous
# version: everything but the parameters that APT adds is frozen.  (Camera-ready version:
# apt_eva02_l_ade20k_512_entire.py.)  Set load_from to a checkpoint of eva02_l_ade20k_512.py.
_base_ = [
    '_base_/models/apt_eva02_l_seg_512.py', '_base_/datasets/ade20k_512.py', '_base_/schedules/apt_ade20k_4k.py',
    '_base_/default_runtime_seg.py'
]
model = dict(trainable=['backbone.patch_embed.conv_down', 'backbone.patch_embed.zero_mlp'])
requires_load_from = True
custom_hooks = [dict(type='KeptTokensHook'), dict(type='BadDataHook'), dict(type='CheckFrozenLoadedHook')]
