# The short fine-tuning of EVA-02 on COCO: 5 % of the dense model's 60k iterations.
_base_ = './apt_short.py'
max_iters = 3000

train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=1000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=5e-5, betas=(0.9, 0.999), weight_decay=0.1))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=50),
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=max_iters,
        milestones=[int(0.8 * max_iters), int(0.9 * max_iters)],
        gamma=0.1)
]
auto_scale_lr = dict(enable=False, base_batch_size=128)
