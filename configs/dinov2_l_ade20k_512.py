# Dense DINOv2-L on ADE20K at 512, fine-tuned from the pre-trained backbone.  No UperNet on a fine-tuned DINOv2 has been
# published (its own results keep the backbone frozen): the recipe is EVA-02's, which has the same neck and heads.
_base_ = [
    '_base_/models/dinov2_l_seg_512.py', '_base_/datasets/ade20k_512.py', '_base_/schedules/eva02_ade20k_80k.py',
    '_base_/default_runtime_seg.py'
]
pretrained = 'checkpoints/dinov2_l.pth'
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.')))
optim_wrapper = dict(paramwise_cfg=dict(num_layers=24, layer_decay_rate=0.9))
