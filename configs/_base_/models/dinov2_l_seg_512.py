# UperNet on DINOv2-L with patches of 16 px: the converter resamples its patches of 14 px and its table of 37 x 37
# positions, so that a window of 512 px is 32 x 32 cells.
_base_ = './mae_l_seg_512.py'
model = dict(backbone=dict(layer_scale=1e-5, final_norm=True))
