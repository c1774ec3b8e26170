# COCO instance segmentation with large-scale jittering at 1024 px.
_base_ = './coco_instance_lsj.py'
image_size = 1024
sizes = dict(
    RandomResize=dict(scale=(image_size, image_size)),
    ResizeToAtLeastOnePixel=dict(scale=(image_size, image_size)),
    RandomCrop=dict(crop_size=(image_size, image_size)))

train_pipeline = [dict(step, **sizes.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **sizes.get(step['type'], {})) for step in _base_.test_pipeline]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
