# APT-ViT-B/16 on ImageNet-1k at 384: short fine-tuning of a trained classifier.  load_from: a published one, converted
# with vit_b_in1k_384.py.  Baselines: model.backbone.detail_branch=none (Resizing),
# model.backbone.reduction.type=Random.
_base_ = ['./vit_b_in1k_384.py', '_base_/patches/in1k.py']
model = dict(backbone=_base_.patches)
