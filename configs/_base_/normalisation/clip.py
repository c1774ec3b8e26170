# How CLIP wants images, see imagenet.py.
img_mean = [122.7709383, 116.7460125, 104.09373615]
img_std = [68.5005327, 66.6321579, 70.32316305]
