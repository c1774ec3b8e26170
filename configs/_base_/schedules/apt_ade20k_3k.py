# The short fine-tuning of EVA-02-B on ADE20K: 5 % of the dense model's 60k iterations.
_base_ = './apt_ade20k_4k.py'
max_iters = 3000

train_cfg = dict(max_iters=max_iters, val_interval=1500)
optim_wrapper = dict(optimizer=dict(lr=6e-5))
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=max_iters)
]
auto_scale_lr = dict(base_batch_size=32)
