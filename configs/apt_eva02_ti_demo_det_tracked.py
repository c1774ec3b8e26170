# The demo detector with mmengine's own means to keep track of a long training; the settings fit every config.
_base_ = './apt_eva02_ti_demo_det.py'
default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP', rule='greater'))
custom_hooks = [
    dict(type='KeptTokensHook'),
    dict(type='BadDataHook'),
    # Validated, tested and saved as state_dict are the averaged weights.
    dict(type='EMAHook', momentum=2e-3),
    # Three validations without 0.001 more end the training.
    dict(type='EarlyStoppingHook', monitor='coco/segm_mAP', rule='greater', min_delta=1e-3, patience=3)
]
train_cfg = dict(val_interval=100)
# W&B without a network: pip install wandb, then add dict(type='WandbVisBackend', init_kwargs=dict(project='apt_dense',
# mode='offline')); `wandb sync` uploads WORK_DIR/TIMESTAMP/vis_data/wandb/offline-run-* later.
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(vis_backends=vis_backends)
