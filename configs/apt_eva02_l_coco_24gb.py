# The short fine-tuning of apt_eva02_l_coco.py on one GPU of 24 GB: 1024 px, bfloat16, recomputed activations (L's
# default), 8 images at a time, 4 times a step.  That is a quarter of the official batch, so the rate is a quarter of it
# too; 3000 steps as there.  Memory is computed (docs/memory.md): this has not run on such a GPU.
_base_ = './apt_eva02_l_coco.py'
image_size = 1024
accumulative_counts = 4
max_iters = 3000 * accumulative_counts
train_pipeline = [
    dict(step, crop_size=(image_size, image_size)) if 'crop_size' in step else
    dict(step, scale=(image_size, image_size)) if 'scale' in step else step for step in _base_.train_pipeline
]
test_pipeline = [
    dict(step, scale=(image_size, image_size)) if 'scale' in step else step for step in _base_.test_pipeline
]
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
model = dict(data_preprocessor=dict(pad_size_divisor=image_size), backbone=dict(img_size=image_size))
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',
    accumulative_counts=accumulative_counts,
    optimizer=dict(lr=1.25e-5))
train_cfg = dict(max_iters=max_iters, val_interval=1000 * accumulative_counts)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=50 * accumulative_counts),
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=max_iters,
        milestones=[int(0.8 * max_iters), int(0.9 * max_iters)],
        gamma=0.1)
]
