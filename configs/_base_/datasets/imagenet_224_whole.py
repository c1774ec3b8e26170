# ImageNet-1k at 224 px: the shorter side at 224 px, and the middle of it.
_base_ = './imagenet_224.py'

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='torchvision/Resize', size=224, interpolation='bicubic'),
    dict(type='torchvision/CenterCrop', size=224),
    dict(type='PackClassInputs')
]

train_dataloader = dict(dataset=dict(pipeline=test_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
