_base_ = './eva02_l_seg_512.py'
model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(img_size=640, pretrain_img_size=640),
    decode_head=dict(channels=1536),
    auxiliary_head=dict(channels=1536),
    test_cfg=dict(crop_size=(640, 640), stride=(426, 426)))
