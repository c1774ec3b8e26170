# ImageNet-1k at 448 px with MAE's augmentation, of torchvision: its RandAugment has one magnitude, where timm's
# "m9-mstd0.5" draws it around 9.  Erased is to the mean colour, which merges, as in APT's public code.
_base_ = './imagenet_224.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='torchvision/RandomResizedCrop', size=448, interpolation='bicubic'),
    dict(type='torchvision/RandomHorizontalFlip'),
    dict(type='torchvision/RandAugment', num_ops=2, magnitude=9, interpolation='bicubic'),
    dict(type='torchvision/RandomErasing', p=0.25, value=[124, 116, 104]),
    dict(type='PackClassInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='torchvision/Resize', size=448, interpolation='bicubic'),
    dict(type='torchvision/CenterCrop', size=448),
    dict(type='PackClassInputs')
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
