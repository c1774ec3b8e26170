# Dense DINOv3-L on COCO at 1536, fine-tuned from the pre-trained backbone.  No detector of this kind on DINOv3 has been
# published (its own keeps the backbone frozen): the recipe is EVA-02's, which has the same neck and heads.
_base_ = [
    '_base_/models/dinov3_l_det_1536.py', '_base_/datasets/coco_instance_lsj.py',
    '_base_/schedules/eva02_coco_60k.py', '_base_/default_runtime.py'
]
pretrained = 'checkpoints/dinov3_l.pth'
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.')))
optim_wrapper = dict(paramwise_cfg=dict(num_layers=24, layer_decay_rate=0.8))
