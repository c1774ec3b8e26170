# EVA-02's segmentor: full attention with a class token, a pyramid, UPerHead and an auxiliary FCN head, settings of the
# official ADE20K models.  The models on top of it add sizes.
_base_ = '../normalisation/imagenet.py'
norm_cfg = dict(type='SyncBN', requires_grad=True)

model = dict(
    type='APTEncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=_base_.img_mean,
        std=_base_.img_std,
        bgr_to_rgb=True,
        # Training crops of images smaller than the crop; padded with zeros after normalisation, with 255 in the labels.
        size=(512, 512),
        pad_val=0,
        seg_pad_val=255),
    backbone=dict(
        type='APTEVA02',
        img_size=512,
        patch_size=16,
        window_size=0,
        global_block_indexes=(),
        with_cls_token=True,
        pretrain_img_size=512,  # the size of the position table
        img_mean=_base_.img_mean,
        img_std=_base_.img_std,
        num_scales=1,
        thresholds=()),
    neck=dict(type='Feature2Pyramid', rescales=[4, 2, 1, 0.5], norm_cfg=norm_cfg),
    decode_head=dict(
        type='UPerHead',
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=dict(
        type='FCNHead',
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4)),
    train_cfg=dict(),
    # max_windows at a time; more take more memory.
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341), max_windows=4))
