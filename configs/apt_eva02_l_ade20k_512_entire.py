# APT-EVA-02-L on ADE20K at 512: the short fine-tuning of the paper's camera-ready version.
# It trains the entire model for 5 % of EVA-02's iterations, at a tenth of its rate, all else as in EVA-02's recipe:
# layer decay, drop path, weight decay.  The paper leaves open how warm-up and fall of the rate are shortened: here to
# 5 % too, as in apt_eva02_l_ade20k_512.py; and the rate of the added parameters, which start fresh: here the heads'.
_base_ = './apt_eva02_l_ade20k_512.py'
model = dict(trainable=None)
custom_hooks = [dict(type='KeptTokensHook'), dict(type='BadDataHook')]
optim_wrapper = dict(
    constructor='APTLayerDecayOptimWrapperConstructor',
    optimizer=dict(lr=4e-6),
    paramwise_cfg=dict(num_layers=24, layer_decay_rate=0.9, no_weight_decay_keys=('pos_embed', 'cls_token')))
