# APT-EVA-02-L on COCO at 1536: full fine-tuning from the pre-trained backbone, the official recipe.
_base_ = [
    '_base_/models/apt_eva02_l.py', '_base_/datasets/coco_instance_lsj.py', '_base_/schedules/eva02_coco_60k.py',
    '_base_/default_runtime.py'
]
pretrained = 'checkpoints/eva02_L_pt_m38m_p14to16.pth'
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.')))
optim_wrapper = dict(paramwise_cfg=dict(num_layers=24, layer_decay_rate=0.8))
