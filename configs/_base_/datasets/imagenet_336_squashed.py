# ImageNet-1k at 336 px, both sides resized to it, as the published classifiers at 336 px were trained.
_base_ = './imagenet_224.py'

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='torchvision/Resize', size=(336, 336), interpolation='bicubic'),
    dict(type='PackClassInputs')
]

train_dataloader = dict(dataset=dict(pipeline=test_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
