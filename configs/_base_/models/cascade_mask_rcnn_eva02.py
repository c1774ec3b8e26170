# EVA-02's detector: ViTDet's simple pyramid and Cascade Mask R-CNN, settings of the official COCO models.
# A leaf config adds the sizes of the backbone and neck.in_channels.
_base_ = '../normalisation/imagenet.py'
norm_cfg = dict(type='LN2d', eps=1e-6)

model = dict(
    type='APTCascadeRCNN',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=_base_.img_mean,
        std=_base_.img_std,
        bgr_to_rgb=True,
        pad_mask=True,
        # A square in training and in testing.  (batch_augments would pad in training only.)
        pad_size_divisor=1536),
    backbone=dict(
        type='APTEVA02',
        img_size=1536,
        patch_size=16,
        window_size=32,
        pretrain_img_size=224,
        img_mean=_base_.img_mean,
        img_std=_base_.img_std,
        num_scales=1,
        thresholds=()),
    neck=dict(type='SimpleFPN', out_channels=256),
    rpn_head=dict(
        type='RPNHead',
        in_channels=256,
        feat_channels=256,
        num_convs=2,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss')),
    roi_head=dict(
        type='EVA02CascadeRoIHead',
        num_stages=3,
        stage_loss_weights=[1, 1, 1],
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32]),
        bbox_head=[
            dict(
                type='Shared4Conv1FCBBoxHead',
                in_channels=256,
                conv_out_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                norm_cfg=norm_cfg,
                # detectron2's weights (w, w, w / 2, w / 2) are the reciprocals of these.
                bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[1 / w, 1 / w, 2 / w, 2 / w]),
                reg_class_agnostic=True,
                loss_cls=dict(type='CrossEntropyLoss'),
                loss_bbox=dict(type='L1Loss')) for w in (10, 20, 30)
        ],
        mask_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32]),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=4,
            in_channels=256,
            conv_out_channels=256,
            num_classes=80,
            norm_cfg=norm_cfg,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True))),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3, ignore_iof_thr=-1),
            sampler=dict(type='RandomSampler', num=256, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1),
        rpn_proposal=dict(nms_pre=2000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=[
            dict(
                assigner=dict(
                    type='MaxIoUAssigner',
                    pos_iou_thr=iou,
                    neg_iou_thr=iou,
                    min_pos_iou=iou,
                    match_low_quality=False,
                    ignore_iof_thr=-1),
                # detectron2 samples for the first stage only; a share of 1 keeps all boxes of the later stages.
                sampler=dict(type='RandomSampler', num=512, pos_fraction=share, add_gt_as_proposals=True),
                mask_size=28,
                pos_weight=-1) for iou, share in ((0.5, 0.25), (0.6, 1.0), (0.7, 1.0))
        ]),
    test_cfg=dict(
        rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        # The published setting: soft-NMS for each class, nothing cut by score, and not more than COCO's evaluation
        # takes, the best 100 of each class (without maskness_thr, and with the evaluator's proposal_nums).  For speed
        # in other uses: score_thr=0.05, max_per_img=100 and nms=dict(type='nms', iou_threshold=0.5).
        rcnn=dict(
            score_thr=0.0,
            nms=dict(type='soft_nms', method='linear', iou_threshold=0.6, min_score=1e-3),
            max_per_img=-1,
            max_per_class=100,
            mask_thr_binary=0.5,
            maskness_thr=None)))  # 0.5 for the published mask AP: scores times the mean probability inside the mask
