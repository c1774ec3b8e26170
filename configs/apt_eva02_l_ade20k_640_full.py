# APT-EVA-02-L on ADE20K at 640: full fine-tuning from the pre-trained backbone, the official recipe.
_base_ = [
    '_base_/models/apt_eva02_l_seg_640.py', '_base_/datasets/ade20k_640.py', '_base_/schedules/eva02_ade20k_80k.py',
    '_base_/default_runtime_seg.py'
]
pretrained = 'checkpoints/eva02_L_pt_m38m_p14to16.pth'
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.')))
optim_wrapper = dict(paramwise_cfg=dict(num_layers=24, layer_decay_rate=0.9))
