# Dense DINOv3-B on ADE20K at 896, fine-tuned from the pre-trained backbone.  No UperNet on a fine-tuned DINOv3 has been
# published: the recipe is EVA-02's, which has the same neck and heads.
_base_ = [
    '_base_/models/dinov3_b_seg_896.py', '_base_/datasets/ade20k_896.py', '_base_/schedules/eva02_ade20k_60k.py',
    '_base_/default_runtime_seg.py'
]
pretrained = 'checkpoints/dinov3_b.pth'
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.')))
optim_wrapper = dict(
    paramwise_cfg=dict(num_layers=12, layer_decay_rate=0.85, no_weight_decay_keys=('cls_token', 'reg_token')))
train_dataloader = dict(batch_size=8)
