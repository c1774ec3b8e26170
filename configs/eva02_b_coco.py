# Dense EVA-02-B on COCO at 1536: the official fine-tuning from the pre-trained backbone (published box AP: 58.9).
_base_ = [
    '_base_/models/eva02_b.py', '_base_/datasets/coco_instance_lsj.py', '_base_/schedules/eva02_coco_60k.py',
    '_base_/default_runtime.py'
]
pretrained = 'checkpoints/eva02_B_pt_in21k_p14to16.pth'
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.')))
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12, layer_decay_rate=0.7))
