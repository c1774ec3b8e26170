# The classification demo: short fine-tuning with APT of the dense model, of all parameters at a tenth of its rate.
# load_from: a checkpoint of vit_ti_demo_cls.py.
_base_ = ['./vit_ti_demo_cls.py', '_base_/patches/demo_cls.py']
requires_load_from = True
max_iters = 100
model = dict(backbone=_base_.patches)

train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=max_iters, eta_min=0)
]
