_base_ = './default_runtime.py'
default_scope = 'mmengine'
custom_imports = dict(imports=['apt_dense.mm.cls'], allow_failed_imports=False)

default_hooks = dict(  # nothing is drawn
    _delete_=True,
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=True, interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'))
visualizer = dict(type='Visualizer')
log_processor = dict(by_epoch=True)
