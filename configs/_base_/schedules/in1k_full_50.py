# As in1k_full.py, for ViT-L: 50 epochs.
_base_ = './in1k_full.py'
max_epochs = 50

train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(
        type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=5, end=max_epochs, convert_to_iter_based=True)
]
