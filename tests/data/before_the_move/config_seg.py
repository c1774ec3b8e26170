auto_scale_lr = dict(base_batch_size=4, enable=False)
classes = (
    'background',
    'ball',
    'crate',
    'kite',
    'lifebuoy',
    'starfish',
)
crop_size = (
    256,
    256,
)
custom_hooks = [
    dict(type='KeptTokensHook'),
    dict(type='BadDataHook'),
]
custom_imports = dict(
    allow_failed_imports=False, imports=[
        'apt_dense.mm.seg',
    ])
data_root = 'data/demo/'
dataset_type = 'BaseSegDataset'
default_hooks = dict(
    checkpoint=dict(
        by_epoch=False, interval=100, max_keep_ckpts=1, type='CheckpointHook'),
    logger=dict(interval=50, type='LoggerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    timer=dict(type='IterTimerHook'),
    visualization=dict(type='SegVisualizationHook'))
default_scope = 'mmseg'
env_cfg = dict(
    cudnn_benchmark=False,
    dist_cfg=dict(backend='nccl'),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
load_from = None
log_level = 'INFO'
log_processor = dict(
    by_epoch=False,
    mean_pattern=
    '.*(loss|time|data_time|grad_norm|kept_tokens|tokens_per_second|over_budget).*',
    type='LogProcessor',
    window_size=50)
max_iters = 500
metainfo = dict(
    classes=(
        'background',
        'ball',
        'crate',
        'kite',
        'lifebuoy',
        'starfish',
    ),
    palette=[
        [
            90,
            90,
            90,
        ],
        [
            230,
            60,
            60,
        ],
        [
            240,
            160,
            40,
        ],
        [
            70,
            110,
            240,
        ],
        [
            190,
            150,
            0,
        ],
        [
            60,
            190,
            100,
        ],
    ])
model = dict(
    auxiliary_head=dict(
        align_corners=False,
        channels=64,
        concat_input=False,
        dropout_ratio=0.1,
        in_channels=192,
        in_index=2,
        loss_decode=dict(
            loss_weight=0.4, type='CrossEntropyLoss', use_sigmoid=False),
        norm_cfg=dict(requires_grad=True, type='SyncBN'),
        num_classes=6,
        num_convs=1,
        type='FCNHead'),
    backbone=dict(
        depth=12,
        embed_dims=192,
        global_block_indexes=(),
        img_size=256,
        num_heads=3,
        num_scales=4,
        out_indices=(
            3,
            5,
            7,
            11,
        ),
        patch_size=16,
        pretrain_img_size=256,
        thresholds=(
            3.5,
            3.5,
            3.0,
        ),
        type='APTEVA02',
        window_size=0,
        with_cls_token=True),
    data_preprocessor=dict(
        bgr_to_rgb=True,
        mean=[
            123.675,
            116.28,
            103.53,
        ],
        pad_val=0,
        seg_pad_val=255,
        size=(
            256,
            256,
        ),
        std=[
            58.395,
            57.12,
            57.375,
        ],
        type='SegDataPreProcessor'),
    decode_head=dict(
        align_corners=False,
        channels=64,
        dropout_ratio=0.1,
        in_channels=[
            192,
            192,
            192,
            192,
        ],
        in_index=[
            0,
            1,
            2,
            3,
        ],
        loss_decode=dict(
            loss_weight=1.0, type='CrossEntropyLoss', use_sigmoid=False),
        norm_cfg=dict(requires_grad=True, type='SyncBN'),
        num_classes=6,
        pool_scales=(
            1,
            2,
            3,
            6,
        ),
        sampler=dict(min_kept=10000, thresh=0.7, type='OHEMPixelSampler'),
        type='UPerHead'),
    neck=dict(
        embed_dim=192,
        norm_cfg=dict(requires_grad=True, type='SyncBN'),
        rescales=[
            4,
            2,
            1,
            0.5,
        ],
        type='Feature2Pyramid'),
    test_cfg=dict(crop_size=(
        256,
        256,
    ), mode='slide', stride=(
        171,
        171,
    )),
    train_cfg=dict(),
    type='APTEncoderDecoder')
norm_cfg = dict(requires_grad=True, type='SyncBN')
num_classes = 6
optim_wrapper = dict(
    clip_grad=dict(max_norm=1.0),
    optimizer=dict(
        betas=(
            0.9,
            0.999,
        ), lr=0.0005, type='AdamW', weight_decay=0.05),
    type='OptimWrapper')
palette = [
    [
        90,
        90,
        90,
    ],
    [
        230,
        60,
        60,
    ],
    [
        240,
        160,
        40,
    ],
    [
        70,
        110,
        240,
    ],
    [
        190,
        150,
        0,
    ],
    [
        60,
        190,
        100,
    ],
]
param_scheduler = [
    dict(begin=0, by_epoch=False, end=100, start_factor=0.01, type='LinearLR'),
    dict(
        begin=100,
        by_epoch=False,
        end=500,
        eta_min=5e-06,
        type='CosineAnnealingLR'),
]
randomness = dict(seed=0)
resume = False
scale = (
    1024,
    256,
)
test_cfg = dict(type='TestLoop')
test_dataloader = dict(
    batch_size=1,
    dataset=dict(
        data_prefix=dict(img_path='val', seg_map_path='semantic/val'),
        data_root='data/demo/',
        metainfo=dict(
            classes=(
                'background',
                'ball',
                'crate',
                'kite',
                'lifebuoy',
                'starfish',
            ),
            palette=[
                [
                    90,
                    90,
                    90,
                ],
                [
                    230,
                    60,
                    60,
                ],
                [
                    240,
                    160,
                    40,
                ],
                [
                    70,
                    110,
                    240,
                ],
                [
                    190,
                    150,
                    0,
                ],
                [
                    60,
                    190,
                    100,
                ],
            ]),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(keep_ratio=True, scale=(
                1024,
                256,
            ), type='Resize'),
            dict(num_classes=6, type='LoadLabelMap'),
            dict(type='PackSegInputs'),
        ],
        test_mode=True,
        type='BaseSegDataset'),
    num_workers=1,
    persistent_workers=True,
    sampler=dict(shuffle=False, type='DefaultSampler'))
test_evaluator = dict(
    iou_metrics=[
        'mIoU',
    ], type='IoUMetric')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(keep_ratio=True, scale=(
        1024,
        256,
    ), type='Resize'),
    dict(num_classes=6, type='LoadLabelMap'),
    dict(type='PackSegInputs'),
]
train_cfg = dict(max_iters=500, type='IterBasedTrainLoop', val_interval=500)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        data_prefix=dict(img_path='train', seg_map_path='semantic/train'),
        data_root='data/demo/',
        metainfo=dict(
            classes=(
                'background',
                'ball',
                'crate',
                'kite',
                'lifebuoy',
                'starfish',
            ),
            palette=[
                [
                    90,
                    90,
                    90,
                ],
                [
                    230,
                    60,
                    60,
                ],
                [
                    240,
                    160,
                    40,
                ],
                [
                    70,
                    110,
                    240,
                ],
                [
                    190,
                    150,
                    0,
                ],
                [
                    60,
                    190,
                    100,
                ],
            ]),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(num_classes=6, type='LoadLabelMap'),
            dict(
                keep_ratio=True,
                ratio_range=(
                    0.7,
                    1.4,
                ),
                scale=(
                    1024,
                    256,
                ),
                type='RandomResize'),
            dict(
                cat_max_ratio=0.75, crop_size=(
                    256,
                    256,
                ), type='RandomCrop'),
            dict(prob=0.5, type='RandomFlip'),
            dict(type='PackSegInputs'),
        ],
        type='BaseSegDataset'),
    num_workers=1,
    persistent_workers=True,
    sampler=dict(shuffle=True, type='InfiniteSampler'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(num_classes=6, type='LoadLabelMap'),
    dict(
        keep_ratio=True,
        ratio_range=(
            0.7,
            1.4,
        ),
        scale=(
            1024,
            256,
        ),
        type='RandomResize'),
    dict(cat_max_ratio=0.75, crop_size=(
        256,
        256,
    ), type='RandomCrop'),
    dict(prob=0.5, type='RandomFlip'),
    dict(type='PackSegInputs'),
]
tta_model = dict(type='SegTTAModel')
val_cfg = dict(type='ValLoop')
val_dataloader = dict(
    batch_size=1,
    dataset=dict(
        data_prefix=dict(img_path='val', seg_map_path='semantic/val'),
        data_root='data/demo/',
        metainfo=dict(
            classes=(
                'background',
                'ball',
                'crate',
                'kite',
                'lifebuoy',
                'starfish',
            ),
            palette=[
                [
                    90,
                    90,
                    90,
                ],
                [
                    230,
                    60,
                    60,
                ],
                [
                    240,
                    160,
                    40,
                ],
                [
                    70,
                    110,
                    240,
                ],
                [
                    190,
                    150,
                    0,
                ],
                [
                    60,
                    190,
                    100,
                ],
            ]),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(keep_ratio=True, scale=(
                1024,
                256,
            ), type='Resize'),
            dict(num_classes=6, type='LoadLabelMap'),
            dict(type='PackSegInputs'),
        ],
        test_mode=True,
        type='BaseSegDataset'),
    num_workers=1,
    persistent_workers=True,
    sampler=dict(shuffle=False, type='DefaultSampler'))
val_evaluator = dict(
    iou_metrics=[
        'mIoU',
    ], type='IoUMetric')
vis_backends = [
    dict(type='LocalVisBackend'),
]
visualizer = dict(
    name='visualizer',
    type='SegLocalVisualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
    ])
