# Dense MAE-L on ADE20K at 512, fine-tuned from the pre-trained backbone.  The recipe is that of mmsegmentation's MAE-B;
# its decay of 0.65 for each of 12 blocks is 0.8 for each of 24: the patch embedding's rate is then the same share.
_base_ = [
    '_base_/models/mae_l_seg_512.py', '_base_/datasets/ade20k_512.py', '_base_/schedules/mae_ade20k_160k.py',
    '_base_/default_runtime_seg.py'
]
pretrained = 'checkpoints/mae_l.pth'
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.')))
optim_wrapper = dict(paramwise_cfg=dict(num_layers=24, layer_decay_rate=0.8))
