# The paper's short fine-tuning of a classifier that is trained already, of the entire model: one epoch, 1e-6, a layer
# decay of 0.99, nothing augmented.  It does not say how the rate falls: here as a cosine.  A leaf config sets
# num_layers.
requires_load_from = True

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    constructor='APTLayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-6, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(layer_decay_rate=0.99, flat_decay_mult=0.0, no_weight_decay_keys=('pos_embed', 'cls_token')))
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=0, by_epoch=True, begin=0, end=1, convert_to_iter_based=True)
]
auto_scale_lr = dict(enable=False, base_batch_size=1024)
