# The dense detector of the experiments: the demo's, at 384 px.  cell_config.py changes it for each cell.
_base_ = '../../../configs/eva02_ti_demo_det.py'
custom_imports = dict(imports=['apt_dense.mm.det', 'input_sizes'])
image_size = 384
max_iters = 1000

train_pipeline = _base_.train_pipeline
train_pipeline[3].update(scale=(image_size, image_size))
train_pipeline[4].update(crop_size=(image_size, image_size))
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(image_size, image_size))

model = dict(
    data_preprocessor=dict(pad_size_divisor=image_size),
    backbone=dict(img_size=image_size, pretrain_img_size=image_size),
    # Anchors of 12 to 192 px: the smallest objects have 8.
    rpn_head=dict(anchor_generator=dict(scales=[3])),
    test_cfg=dict(rpn=dict(max_per_img=128)))  # of at most 12 objects: half of the demo's, for speed
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
val_evaluator = dict(type='InputSizeCocoMetric')
test_evaluator = dict(type='InputSizeCocoMetric')

train_cfg = dict(max_iters=max_iters)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=max_iters)]
