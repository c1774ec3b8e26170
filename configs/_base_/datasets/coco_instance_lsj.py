# COCO instance segmentation with large-scale jittering at 1536 px; padding to the square is the model's.
dataset_type = 'CheckedCocoDataset'  # checks and mends the file, and logs what it leaves out
data_root = 'data/coco/'
image_size = 1536
backend_args = None

# Pillow's bilinear resizing averages when it shrinks, as in the official code; OpenCV's does not.
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    # Polygons, as in the official code: a bitmap of 1536 px for each object would be resized, sent and cropped.
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomResize',
        scale=(image_size, image_size),
        ratio_range=(0.1, 2.0),
        keep_ratio=True,
        resize_type='ResizeToAtLeastOnePixel',
        backend='pillow'),
    dict(
        type='RandomCrop',
        crop_type='absolute',
        crop_size=(image_size, image_size),
        recompute_bbox=True,
        allow_negative_crop=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2), keep_empty=False),
    dict(type='PackDetInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='ResizeToAtLeastOnePixel', scale=(image_size, image_size), keep_ratio=True, backend='pillow'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]

train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        on_bad_annotation='skip',
        data_root=data_root,
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=0),
        pipeline=train_pipeline,
        backend_args=backend_args))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=backend_args))
test_dataloader = val_dataloader

val_evaluator = dict(
    type='CheckedCocoMetric',
    ann_file=data_root + 'annotations/instances_val2017.json',
    metric=['bbox', 'segm'],
    proposal_nums=(1, 10, 100),  # COCO's own; mmdetection's default counts up to 1000 detections in AP50 and AP75
    backend_args=backend_args)
test_evaluator = val_evaluator
