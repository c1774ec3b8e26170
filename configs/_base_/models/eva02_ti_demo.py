# The detector of the COCO configs in small: 256 px, a tiny backbone, narrow heads, five classes, anchors half as large.
_base_ = './cascade_mask_rcnn_eva02.py'
num_classes = 5
channels = 64
small_head = dict(in_channels=channels, conv_out_channels=channels)

model = dict(
    data_preprocessor=dict(pad_size_divisor=256),
    backbone=dict(
        img_size=256,
        embed_dims=192,
        depth=12,
        num_heads=3,
        window_size=8,
        global_block_indexes=(1, 3, 5, 7, 9, 11),
        pretrain_img_size=256,
        drop_path_rate=0.0),
    neck=dict(in_channels=192, out_channels=channels),
    rpn_head=dict(in_channels=channels, feat_channels=channels, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, finest_scale=28),
        bbox_head=[
            dict(head, **small_head, fc_out_channels=256, num_classes=num_classes)
            for head in _base_.model.roi_head.bbox_head
        ],
        mask_roi_extractor=dict(out_channels=channels, finest_scale=28),
        mask_head=dict(**small_head, num_classes=num_classes)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=256),
        rcnn=[
            dict(stage, sampler=dict(stage.sampler, num=64)) for stage in _base_.model.train_cfg.rcnn
        ]),
    test_cfg=dict(
        rpn=dict(nms_pre=500, max_per_img=256),
        rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5, _delete_=True), max_per_img=100)))
