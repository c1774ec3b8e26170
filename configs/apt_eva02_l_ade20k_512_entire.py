# APT-EVA-02-L on ADE20K at 512: short fine-tuning of a dense segmentor, of the entire model.
_base_ = './apt_eva02_l_ade20k_512.py'
model = dict(trainable=None)
custom_hooks = [hook for hook in _base_.custom_hooks if hook.type != 'CheckFrozenLoadedHook']  # nothing is frozen
optim_wrapper = dict(
    constructor='APTLayerDecayOptimWrapperConstructor',
    optimizer=dict(lr=4e-6),
    paramwise_cfg=dict(num_layers=24, layer_decay_rate=0.9, no_weight_decay_keys=('pos_embed', 'cls_token')))
