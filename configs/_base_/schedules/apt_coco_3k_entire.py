# The short fine-tuning of the entire EVA-02 on COCO.  A leaf config sets num_layers, layer_decay_rate.
_base_ = './apt_coco_3k.py'
optim_wrapper = dict(constructor='APTLayerDecayOptimWrapperConstructor', optimizer=dict(lr=5e-6))
