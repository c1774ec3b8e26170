# The paper's Resizing baseline: APT's patches without the added parameters.  There is nothing to train: evaluate it
# with the checkpoint of the dense segmentor (eva02_b_ade20k_512.py).
_base_ = [
    '_base_/models/apt_eva02_b_seg_512.py', '_base_/datasets/ade20k_512.py', '_base_/default_runtime_seg.py'
]
model = dict(backbone=dict(detail_branch='none'))
train_dataloader = None
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
