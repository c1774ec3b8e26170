# APT-EVA-02-L on COCO at 1536: short fine-tuning of a dense detector, of the entire model.
_base_ = './apt_eva02_l_coco.py'
model = dict(trainable=None)
custom_hooks = [hook for hook in _base_.custom_hooks if hook.type != 'CheckFrozenLoadedHook']  # nothing is frozen
optim_wrapper = dict(
    constructor='APTLayerDecayOptimWrapperConstructor',
    optimizer=dict(lr=5e-6),
    paramwise_cfg=dict(num_layers=24, layer_decay_rate=0.8))
