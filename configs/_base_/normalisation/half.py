# How AugReg wants images, see imagenet.py.
img_mean = [127.5, 127.5, 127.5]
img_std = [127.5, 127.5, 127.5]
