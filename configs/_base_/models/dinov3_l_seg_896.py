_base_ = './dinov3_l_seg_512.py'
model = dict(
    data_preprocessor=dict(size=(896, 896)),
    backbone=dict(img_size=896),
    test_cfg=dict(crop_size=(896, 896), stride=(597, 597)))
