# Dense twin of apt_vit_b_in1k_384.py, with the same epoch of training; to test a published classifier, convert it with
# this config.  load_from: that classifier.
_base_ = [
    '_base_/models/vit_b_in1k.py', '_base_/datasets/imagenet_384.py', '_base_/schedules/in1k_short.py',
    '_base_/default_runtime_cls.py'
]
model = dict(backbone=dict(img_size=384, pretrain_img_size=384))
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))
