# MAE's fine-tuning on ADE20K, after BEiT's: 160k iterations at batch 16, a linear decay after a linear warm-up.  A leaf
# config sets num_layers and layer_decay_rate.
_base_ = './eva02_ade20k_80k.py'
max_iters = 160000

train_cfg = dict(max_iters=max_iters, val_interval=16000)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=max_iters)
]
