# APT-EVA-02-L on COCO at 1536: the official fine-tuning from the pre-trained backbone, as of its dense twin.
_base_ = ['./eva02_l_coco.py', '_base_/patches/coco_1536.py']
model = dict(backbone=_base_.patches)
