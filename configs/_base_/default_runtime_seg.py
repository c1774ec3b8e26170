_base_ = './default_runtime.py'
default_scope = 'mmseg'
custom_imports = dict(imports=['apt_dense.mm.seg'], allow_failed_imports=False)

default_hooks = dict(visualization=dict(type='SegVisualizationHook'))
visualizer = dict(type='SegLocalVisualizer')
tta_model = dict(type='SegTTAModel')
