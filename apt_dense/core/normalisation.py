"""How families of models want their images normalised: means and deviations of RGB in 0..255.

The one place: the models' defaults come from here, and with them what their patch choosers undo.
"""
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # EVA-02, MAE, DeiT, DINOv2, DINOv3
HALF_MEAN, HALF_STD = (127.5,) * 3, (127.5,) * 3  # AugReg, SAM 3: -1 to 1
CLIP_MEAN = (122.7709383, 116.7460125, 104.09373615)
CLIP_STD = (68.5005327, 66.6321579, 70.32316305)
