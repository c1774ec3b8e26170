# MAE's fine-tuning, whose rate is that of the paper: 1.5e-3 for a batch of 256, with 1024 images a batch.  (MAE's own
# are 5e-4 for ViT-B and 1e-3 for ViT-L.)  A leaf config sets num_layers, and ViT-L its 50 epochs.
max_epochs = 100

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    constructor='APTLayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1.5e-3 * 1024 / 256, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(layer_decay_rate=0.75, flat_decay_mult=0.0, no_weight_decay_keys=('pos_embed', 'cls_token')))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=5, end=max_epochs, convert_to_iter_based=True)
]
auto_scale_lr = dict(enable=False, base_batch_size=1024)
