# The paper's Resizing baseline: APT's patches without the added parameters.  There is nothing to train: evaluate it
# with the checkpoint of the dense detector (eva02_b_coco.py).
_base_ = ['_base_/models/apt_eva02_b.py', '_base_/datasets/coco_instance_lsj.py', '_base_/default_runtime.py']
model = dict(backbone=dict(detail_branch='none'))
train_dataloader = None
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
