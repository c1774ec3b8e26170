# Dense twin of apt_dinov3_ti_demo_seg.py.
_base_ = [
    '_base_/models/dinov3_ti_demo_seg.py', '_base_/datasets/demo_semantic.py', '_base_/schedules/demo.py',
    '_base_/default_runtime_seg.py'
]
default_hooks = dict(checkpoint=dict(interval=100, max_keep_ckpts=1))
