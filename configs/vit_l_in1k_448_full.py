# Dense twin of apt_vit_l_in1k_448_full.py: MAE-L at 448 px, fine-tuned from its pre-training.
_base_ = [
    '_base_/models/vit_l_mae_in1k.py', '_base_/datasets/imagenet_448_augmented.py', '_base_/schedules/in1k_full_50.py',
    '_base_/default_runtime_cls.py'
]
pretrained = 'checkpoints/mae_l_448.pth'  # converted with --config this file
model = dict(
    backbone=dict(
        img_size=448,
        pretrain_img_size=448,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.')))
optim_wrapper = dict(paramwise_cfg=dict(num_layers=24))
