# The label maps of tools/demo/make_demo_dataset.py: scenes of 192 to 320 px, background and five classes.
dataset_type = 'BaseSegDataset'
data_root = 'data/demo/'
crop_size = (256, 256)
scale = (1024, 256)
classes = ('background', 'ball', 'crate', 'kite', 'lifebuoy', 'starfish')
palette = [[90, 90, 90], [230, 60, 60], [240, 160, 40], [70, 110, 240], [190, 150, 0], [60, 190, 100]]
metainfo = dict(classes=classes, palette=palette)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadLabelMap', num_classes=len(classes)),
    dict(type='RandomResize', scale=scale, ratio_range=(0.7, 1.4), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadLabelMap', num_classes=len(classes)),
    dict(type='PackSegInputs')
]

train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        metainfo=metainfo,
        data_root=data_root,
        data_prefix=dict(img_path='train', seg_map_path='semantic/train'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        metainfo=metainfo,
        data_root=data_root,
        data_prefix=dict(img_path='val', seg_map_path='semantic/val'),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
