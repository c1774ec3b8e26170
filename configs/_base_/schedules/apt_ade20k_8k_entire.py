# The short fine-tuning of the entire model on ADE20K: 5 % of 160k iterations, a tenth of the rate.  A leaf config sets
# num_layers, layer_decay_rate.
_base_ = './apt_ade20k_4k_entire.py'
max_iters = 8000

train_cfg = dict(max_iters=max_iters, val_interval=4000)
optim_wrapper = dict(optimizer=dict(lr=1e-5))
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=max_iters)
]
