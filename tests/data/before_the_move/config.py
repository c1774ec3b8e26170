auto_scale_lr = dict(base_batch_size=4, enable=False)
channels = 64
custom_hooks = [
    dict(type='KeptTokensHook'),
    dict(type='BadDataHook'),
]
custom_imports = dict(
    allow_failed_imports=False, imports=[
        'apt_dense.mm.det',
    ])
data_root = 'data/demo/'
dataset_type = 'CocoDataset'
default_hooks = dict(
    checkpoint=dict(
        by_epoch=False, interval=2, max_keep_ckpts=5, type='CheckpointHook'),
    logger=dict(interval=1, type='LoggerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    timer=dict(type='IterTimerHook'),
    visualization=dict(type='DetVisualizationHook'))
default_scope = 'mmdet'
env_cfg = dict(
    cudnn_benchmark=False,
    dist_cfg=dict(backend='nccl'),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
experiment_name = 'before_the_move'
image_size = 256
load_from = None
log_level = 'INFO'
log_processor = dict(
    by_epoch=False,
    mean_pattern=
    '.*(loss|time|data_time|grad_norm|kept_tokens|tokens_per_second|over_budget).*',
    type='LogProcessor',
    window_size=50)
max_iters = 500
metainfo = dict(classes=(
    'ball',
    'crate',
    'kite',
    'lifebuoy',
    'starfish',
))
model = dict(
    backbone=dict(
        depth=2,
        drop_path_rate=0.0,
        embed_dims=8,
        global_block_indexes=(1, ),
        img_size=128,
        num_heads=1,
        num_scales=3,
        patch_size=16,
        pretrain_img_size=32,
        thresholds=(
            3.0,
            3.0,
        ),
        type='APTEVA02',
        window_size=4),
    data_preprocessor=dict(
        bgr_to_rgb=True,
        mean=[
            123.675,
            116.28,
            103.53,
        ],
        pad_mask=True,
        pad_size_divisor=128,
        std=[
            58.395,
            57.12,
            57.375,
        ],
        type='DetDataPreprocessor'),
    neck=dict(in_channels=8, out_channels=8, type='SimpleFPN'),
    roi_head=dict(
        bbox_head=[
            dict(
                bbox_coder=dict(
                    target_stds=[
                        0.1,
                        0.1,
                        0.2,
                        0.2,
                    ],
                    type='DeltaXYWHBBoxCoder'),
                conv_out_channels=8,
                fc_out_channels=8,
                in_channels=8,
                loss_bbox=dict(type='L1Loss'),
                loss_cls=dict(type='CrossEntropyLoss'),
                norm_cfg=dict(eps=1e-06, type='LN2d'),
                num_classes=5,
                reg_class_agnostic=True,
                roi_feat_size=7,
                type='Shared4Conv1FCBBoxHead'),
            dict(
                bbox_coder=dict(
                    target_stds=[
                        0.05,
                        0.05,
                        0.1,
                        0.1,
                    ],
                    type='DeltaXYWHBBoxCoder'),
                conv_out_channels=8,
                fc_out_channels=8,
                in_channels=8,
                loss_bbox=dict(type='L1Loss'),
                loss_cls=dict(type='CrossEntropyLoss'),
                norm_cfg=dict(eps=1e-06, type='LN2d'),
                num_classes=5,
                reg_class_agnostic=True,
                roi_feat_size=7,
                type='Shared4Conv1FCBBoxHead'),
            dict(
                bbox_coder=dict(
                    target_stds=[
                        0.03333333333333333,
                        0.03333333333333333,
                        0.06666666666666667,
                        0.06666666666666667,
                    ],
                    type='DeltaXYWHBBoxCoder'),
                conv_out_channels=8,
                fc_out_channels=8,
                in_channels=8,
                loss_bbox=dict(type='L1Loss'),
                loss_cls=dict(type='CrossEntropyLoss'),
                norm_cfg=dict(eps=1e-06, type='LN2d'),
                num_classes=5,
                reg_class_agnostic=True,
                roi_feat_size=7,
                type='Shared4Conv1FCBBoxHead'),
        ],
        bbox_roi_extractor=dict(
            featmap_strides=[
                4,
                8,
                16,
                32,
            ],
            finest_scale=28,
            out_channels=8,
            roi_layer=dict(output_size=7, sampling_ratio=0, type='RoIAlign'),
            type='SingleRoIExtractor'),
        mask_head=dict(
            conv_out_channels=8,
            in_channels=8,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
            norm_cfg=dict(eps=1e-06, type='LN2d'),
            num_classes=5,
            num_convs=4,
            type='FCNMaskHead'),
        mask_roi_extractor=dict(
            featmap_strides=[
                4,
                8,
                16,
                32,
            ],
            finest_scale=28,
            out_channels=8,
            roi_layer=dict(output_size=14, sampling_ratio=0, type='RoIAlign'),
            type='SingleRoIExtractor'),
        num_stages=3,
        stage_loss_weights=[
            1,
            1,
            1,
        ],
        type='EVA02CascadeRoIHead'),
    rpn_head=dict(
        anchor_generator=dict(
            ratios=[
                0.5,
                1.0,
                2.0,
            ],
            scales=[
                4,
            ],
            strides=[
                4,
                8,
                16,
                32,
                64,
            ],
            type='AnchorGenerator'),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        feat_channels=8,
        in_channels=8,
        loss_bbox=dict(type='L1Loss'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        num_convs=2,
        type='RPNHead'),
    test_cfg=dict(
        rcnn=dict(
            mask_thr_binary=0.5,
            maskness_thr=None,
            max_per_img=100,
            nms=dict(iou_threshold=0.5, type='nms'),
            score_thr=0.0),
        rpn=dict(
            max_per_img=256,
            min_bbox_size=0,
            nms=dict(iou_threshold=0.7, type='nms'),
            nms_pre=500)),
    train_cfg=dict(
        rcnn=[
            dict(
                assigner=dict(
                    ignore_iof_thr=-1,
                    match_low_quality=False,
                    min_pos_iou=0.5,
                    neg_iou_thr=0.5,
                    pos_iou_thr=0.5,
                    type='MaxIoUAssigner'),
                mask_size=28,
                pos_weight=-1,
                sampler=dict(
                    add_gt_as_proposals=True,
                    num=64,
                    pos_fraction=0.25,
                    type='RandomSampler')),
            dict(
                assigner=dict(
                    ignore_iof_thr=-1,
                    match_low_quality=False,
                    min_pos_iou=0.6,
                    neg_iou_thr=0.6,
                    pos_iou_thr=0.6,
                    type='MaxIoUAssigner'),
                mask_size=28,
                pos_weight=-1,
                sampler=dict(
                    add_gt_as_proposals=True,
                    num=64,
                    pos_fraction=1.0,
                    type='RandomSampler')),
            dict(
                assigner=dict(
                    ignore_iof_thr=-1,
                    match_low_quality=False,
                    min_pos_iou=0.7,
                    neg_iou_thr=0.7,
                    pos_iou_thr=0.7,
                    type='MaxIoUAssigner'),
                mask_size=28,
                pos_weight=-1,
                sampler=dict(
                    add_gt_as_proposals=True,
                    num=64,
                    pos_fraction=1.0,
                    type='RandomSampler')),
        ],
        rpn=dict(
            allowed_border=-1,
            assigner=dict(
                ignore_iof_thr=-1,
                min_pos_iou=0.3,
                neg_iou_thr=0.3,
                pos_iou_thr=0.7,
                type='MaxIoUAssigner'),
            pos_weight=-1,
            sampler=dict(
                add_gt_as_proposals=False,
                num=256,
                pos_fraction=0.5,
                type='RandomSampler')),
        rpn_proposal=dict(
            max_per_img=256,
            min_bbox_size=0,
            nms=dict(iou_threshold=0.7, type='nms'),
            nms_pre=500)),
    type='APTCascadeRCNN')
norm_cfg = dict(eps=1e-06, type='LN2d')
num_classes = 5
optim_wrapper = dict(
    clip_grad=dict(max_norm=1.0),
    optimizer=dict(
        betas=(
            0.9,
            0.999,
        ), lr=0.0005, type='AdamW', weight_decay=0.05),
    type='OptimWrapper')
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
small_head = dict(conv_out_channels=64, in_channels=64)
test_cfg = dict(type='TestLoop')
test_dataloader = dict(
    batch_size=1,
    dataset=dict(
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        data_root='data/',
        metainfo=dict(
            classes=(
                'ball',
                'crate',
                'kite',
                'lifebuoy',
                'starfish',
            )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                keep_ratio=True,
                scale=(
                    128,
                    128,
                ),
                type='ResizeToAtLeastOnePixel'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(
                meta_keys=(
                    'img_id',
                    'img_path',
                    'ori_shape',
                    'img_shape',
                    'scale_factor',
                ),
                type='PackDetInputs'),
        ],
        test_mode=True,
        type='CocoDataset'),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=False, type='DefaultSampler'))
test_evaluator = dict(
    ann_file='data/annotations/instances_val.json',
    metric=[
        'bbox',
        'segm',
    ],
    proposal_nums=(
        1,
        10,
        100,
    ),
    type='CocoMetric')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(keep_ratio=True, scale=(
        256,
        256,
    ), type='ResizeToAtLeastOnePixel'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        meta_keys=(
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
        ),
        type='PackDetInputs'),
]
train_cfg = dict(max_iters=4, type='IterBasedTrainLoop', val_interval=4)
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        data_root='data/',
        filter_cfg=dict(filter_empty_gt=False),
        metainfo=dict(
            classes=(
                'ball',
                'crate',
                'kite',
                'lifebuoy',
                'starfish',
            )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(prob=0.5, type='RandomFlip'),
            dict(
                keep_ratio=True,
                ratio_range=(
                    0.7,
                    1.4,
                ),
                resize_type='ResizeToAtLeastOnePixel',
                scale=(
                    128,
                    128,
                ),
                type='RandomResize'),
            dict(
                allow_negative_crop=True,
                crop_size=(
                    128,
                    128,
                ),
                crop_type='absolute',
                type='RandomCrop'),
            dict(
                keep_empty=False,
                min_gt_bbox_wh=(
                    4,
                    4,
                ),
                type='FilterAnnotations'),
            dict(type='PackDetInputs'),
        ],
        type='CocoDataset'),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=True, type='InfiniteSampler'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(prob=0.5, type='RandomFlip'),
    dict(
        keep_ratio=True,
        ratio_range=(
            0.7,
            1.4,
        ),
        resize_type='ResizeToAtLeastOnePixel',
        scale=(
            256,
            256,
        ),
        type='RandomResize'),
    dict(
        allow_negative_crop=True,
        crop_size=(
            256,
            256,
        ),
        crop_type='absolute',
        type='RandomCrop'),
    dict(keep_empty=False, min_gt_bbox_wh=(
        4,
        4,
    ), type='FilterAnnotations'),
    dict(type='PackDetInputs'),
]
val_cfg = dict(type='ValLoop')
val_dataloader = dict(
    batch_size=1,
    dataset=dict(
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        data_root='data/',
        metainfo=dict(
            classes=(
                'ball',
                'crate',
                'kite',
                'lifebuoy',
                'starfish',
            )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                keep_ratio=True,
                scale=(
                    128,
                    128,
                ),
                type='ResizeToAtLeastOnePixel'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(
                meta_keys=(
                    'img_id',
                    'img_path',
                    'ori_shape',
                    'img_shape',
                    'scale_factor',
                ),
                type='PackDetInputs'),
        ],
        test_mode=True,
        type='CocoDataset'),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=False, type='DefaultSampler'))
val_evaluator = dict(
    ann_file='data/annotations/instances_val.json',
    metric=[
        'bbox',
        'segm',
    ],
    proposal_nums=(
        1,
        10,
        100,
    ),
    type='CocoMetric')
vis_backends = [
    dict(type='LocalVisBackend'),
]
visualizer = dict(
    name='work',
    type='DetLocalVisualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
    ])
work_dir = 'work'
