# The short fine-tuning of the entire EVA-02-L on ADE20K.  A leaf config sets num_layers, layer_decay_rate.
_base_ = './apt_ade20k_4k.py'
optim_wrapper = dict(
    constructor='APTLayerDecayOptimWrapperConstructor',
    optimizer=dict(lr=4e-6),
    paramwise_cfg=dict(no_weight_decay_keys=('pos_embed', 'cls_token')))
