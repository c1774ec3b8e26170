default_scope = 'mmdet'
custom_imports = dict(imports=['apt_dense.mm.det'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1000, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'))
custom_hooks = [dict(type='KeptTokensHook'), dict(type='BadDataHook')]

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # Seconds: the other ranks wait while rank 0 evaluates, on COCO for longer than NCCL's ten minutes.
    dist_cfg=dict(backend='nccl', timeout=7200))

float32_matmul_precision = 'high'  # on a GPU: 'high' is TF32, 'highest' float32

# Add dict(type='TensorboardVisBackend') or dict(type='WandbVisBackend'); both show every scalar of the log.  With
# averaged weights, early stopping and the best checkpoint: apt_eva02_ti_demo_det_tracked.py.
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(
    type='LogProcessor',
    window_size=50,
    by_epoch=False,
    mean_pattern=r'.*(loss|time|data_time|grad_norm|kept_tokens|tokens_per_second|over_budget).*')
log_level = 'INFO'
load_from = None
resume = False
