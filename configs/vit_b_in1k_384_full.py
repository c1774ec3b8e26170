# Dense twin of apt_vit_b_in1k_384_full.py: MAE-B at 384 px, fine-tuned from its pre-training.
_base_ = [
    '_base_/models/vit_b_mae_in1k.py', '_base_/datasets/imagenet_384_augmented.py', '_base_/schedules/in1k_full.py',
    '_base_/default_runtime_cls.py'
]
pretrained = 'checkpoints/mae_b_384.pth'  # converted with --config this file
model = dict(
    backbone=dict(
        img_size=384,
        pretrain_img_size=384,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.')))
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))
