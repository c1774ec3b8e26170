"""Photographs as a model sees them, with nothing but torch, numpy and Pillow."""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from apt_dense.core.eva02 import IMAGENET_MEAN, IMAGENET_STD

# Of photographs: Pillow also opens documents and films.
IMAGE_SUFFIXES = frozenset(('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp'))


def load_image(path: Path) -> Image.Image:
    """Read an image of any mode as RGB, turned as the data loaders turn it (EXIF).

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        image = ImageOps.exif_transpose(Image.open(path))
        if image.mode.startswith('I;16'):  # Pillow would clip 16 bits at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert('RGB')
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f'{path} cannot be read as an image: {error}') from error


def resize_longest(image: Image.Image, size_px: int) -> Image.Image:
    """Resize the longest side to ``size_px``, the other in proportion, at least 1 px (bilinear, averaging)."""
    ratio = size_px / max(image.size)
    return image.resize([max(1, round(side * ratio)) for side in image.size], Image.Resampling.BILINEAR)


def crop_square(image: Image.Image, size_px: int) -> Image.Image:
    """Resize the shortest side to ``size_px`` and cut out the square in the middle."""
    return ImageOps.fit(image, (size_px, size_px), Image.Resampling.BILINEAR)


def find_images(paths: list[Path]) -> list[Path]:
    """The files among ``paths``, and the image files in the folders among them and below, in the order of their names.

    Raises:
        ValueError: for a path that is not there, or a folder without an image.
    """
    result = []
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob('*') if file.suffix.lower() in IMAGE_SUFFIXES and
                           file.is_file())
            if not found:
                raise ValueError(f'{path} holds no image, no {", ".join(sorted(IMAGE_SUFFIXES))} file')
            result += found
        elif path.exists():
            result.append(path)
        else:
            raise ValueError(f'{path} does not exist')
    return result


def to_input(image: Image.Image, size_px: int) -> Tensor:
    """An RGB image -> (1, 3, size_px, size_px): normalised with ImageNet's mean, then padded with zeros."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return F.pad((pixels - mean) / std, (0, size_px - image.width, 0, size_px - image.height))
