# ImageNet-1k, a folder for each class: data/imagenet/{train,val}/n01440764/*.JPEG.  The short fine-tuning augments
# nothing, so training and testing see the same: the shorter side at 224 / 0.9 px, of which the middle 224 px are cut
# out.
data_root = 'data/imagenet/'
num_classes = 1000

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='torchvision/Resize', size=248, interpolation='bicubic'),
    dict(type='torchvision/CenterCrop', size=224),
    dict(type='PackClassInputs')
]

train_dataloader = dict(
    batch_size=128,  # for each of 8 GPUs
    num_workers=12,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='ClassFolderDataset',
        num_classes=num_classes,
        data_root=data_root,
        data_prefix=dict(img_path='train'),
        pipeline=test_pipeline))
val_dataloader = dict(
    batch_size=64,
    num_workers=12,
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
