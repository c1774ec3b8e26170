# The pictures of tools/demo/make_class_dataset.py: 192 px, ten classes.
data_root = 'data/demo_cls/'
num_classes = 10

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='torchvision/RandomResizedCrop', size=192, scale=(0.7, 1.0), interpolation='bicubic'),
    dict(type='torchvision/RandomHorizontalFlip'),
    dict(type='PackClassInputs')
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackClassInputs')]

train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ClassFolderDataset',
        num_classes=num_classes,
        data_root=data_root,
        data_prefix=dict(img_path='train'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ClassFolderDataset',
        num_classes=num_classes,
        data_root=data_root,
        data_prefix=dict(img_path='val'),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='TopKAccuracy', topk=(1, 5))
test_evaluator = val_evaluator
