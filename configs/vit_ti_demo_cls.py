# The classification demo's dense model, from random weights on two CPU cores.
_base_ = [
    '_base_/models/vit_ti_demo_cls.py', '_base_/datasets/demo_classes.py', '_base_/schedules/demo.py',
    '_base_/default_runtime_cls.py'
]
max_iters = 1200
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=500, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters, eta_min=5e-6)
]
