# ADE20K at 896 px.
_base_ = './ade20k_512.py'
crop_size = (896, 896)
scale = (2048, 896)
sizes = dict(RandomResize=dict(scale=scale), Resize=dict(scale=scale), RandomCrop=dict(crop_size=crop_size))

train_pipeline = [dict(step, **sizes.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **sizes.get(step['type'], {})) for step in _base_.test_pipeline]
tta_pipeline = [
    _base_.tta_pipeline[0],
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(step, scale=step['scale'] * 896 // 512) for step in _base_.tta_pipeline[1]['transforms'][0]],
            *_base_.tta_pipeline[1]['transforms'][1:]
        ])
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
