# The dense segmentor of the experiments: the demo's, at 384 px.  cell_config.py changes it for each cell.
_base_ = '../../../configs/eva02_ti_demo_seg.py'
custom_imports = dict(imports=['apt_dense.mm.seg', 'boundary_iou'])
crop_size = (384, 384)
max_iters = 1000

train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=crop_size)
train_pipeline[3].update(crop_size=crop_size)
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=crop_size)

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(img_size=crop_size[0], pretrain_img_size=crop_size[0]),
    test_cfg=dict(crop_size=crop_size, stride=(256, 256)))
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_evaluator = [_base_.val_evaluator, dict(type='BoundaryIoUMetric')]

train_cfg = dict(max_iters=max_iters)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=max_iters)]
