# APT-EVA-02-B on ADE20K at 512: full fine-tuning from the pre-trained backbone, the official recipe.
_base_ = [
    '_base_/models/apt_eva02_b_seg_512.py', '_base_/datasets/ade20k_512.py', '_base_/schedules/eva02_ade20k_60k.py',
    '_base_/default_runtime_seg.py'
]
pretrained = 'checkpoints/eva02_B_pt_in21k_p14to16.pth'
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.')))
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12, layer_decay_rate=0.85))
train_dataloader = dict(batch_size=8)
