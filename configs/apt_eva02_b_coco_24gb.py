# The short fine-tuning of apt_eva02_b_coco.py on one GPU of 24 GB: bfloat16, recomputed activations, 4 images at a
# time, 8 times a step.  That is a quarter of the official batch, so the rate is a quarter of it too; 3000 steps as
# there.  Memory is computed (docs/memory.md): this has not run on such a GPU.
_base_ = './apt_eva02_b_coco.py'
accumulative_counts = 8
max_iters = 3000 * accumulative_counts
train_dataloader = dict(batch_size=4)
model = dict(backbone=dict(with_cp=True))
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
