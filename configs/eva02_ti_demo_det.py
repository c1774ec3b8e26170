# Dense twin of apt_eva02_ti_demo_det.py.
_base_ = [
    '_base_/models/eva02_ti_demo.py', '_base_/datasets/demo_instance.py', '_base_/schedules/demo.py',
    '_base_/default_runtime.py'
]
default_hooks = dict(checkpoint=dict(interval=100, max_keep_ckpts=1))
