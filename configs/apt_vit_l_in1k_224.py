# APT-ViT-L/14 on ImageNet-1k at 224: short fine-tuning of a trained classifier.  load_from: a published one, converted
# with vit_l_in1k_224.py.  Baselines: model.backbone.detail_branch=none (Resizing),
# model.backbone.reduction.type=Random.
_base_ = ['./vit_l_in1k_224.py', '_base_/patches/in1k.py']
model = dict(backbone=_base_.patches)
