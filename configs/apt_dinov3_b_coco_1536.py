# APT-DINOv3-B on COCO at 1536: short fine-tuning of a dense detector, of the entire model.  load_from: a checkpoint of
# dinov3_b_coco_1536.py.
_base_ = [
    '_base_/models/dinov3_b_det_1536.py', '_base_/patches/coco_1536.py', '_base_/datasets/coco_instance_lsj.py',
    '_base_/schedules/apt_coco_3k_entire.py', '_base_/default_runtime.py'
]
model = dict(backbone=_base_.patches)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12, layer_decay_rate=0.7))
