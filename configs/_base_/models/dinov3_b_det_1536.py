_base_ = './dinov3_b_det_1024.py'
model = dict(data_preprocessor=dict(pad_size_divisor=1536), backbone=dict(img_size=1536, window_size=32))
