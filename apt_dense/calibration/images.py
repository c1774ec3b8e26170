"""Photographs as a model sees them, with nothing but torch, numpy and Pillow."""
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_dense.core.chooser import IMAGENET_MEAN, IMAGENET_STD
from apt_dense.extras import from_extra

with from_extra('images'):
    import numpy as np
    from PIL import Image, ImageOps

RESAMPLINGS = ('pillow', 'opencv')
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


def resize(image: Image.Image, size: tuple[int, int], resampling: str) -> Image.Image:
    """Resize an RGB image to (width, height) in pixels, bilinearly, by one of ``RESAMPLINGS``.

    They differ where an image shrinks.  'pillow' averages all pixels, as detectron2 and the COCO configs do.  'opencv'
    looks at four pixels only, as mmsegmentation and the ADE20K configs do: the image is sharper, noise is left in it,
    and more tokens are kept.

    Raises:
        ValueError: for an unknown resampling.
    """
    if resampling not in RESAMPLINGS:
        raise ValueError(f'resampling={resampling!r}: choose one of {RESAMPLINGS}')
    if resampling == 'pillow':
        return image.resize(size, Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, size=size[::-1], mode='bilinear', align_corners=False)
    return Image.fromarray(pixels[0].round().permute(1, 2, 0).byte().numpy())


def resize_longest(image: Image.Image, size_px: int, resampling: str) -> Image.Image:
    """Resize the longest side to ``size_px``, the other in proportion, at least 1 px (see ``resize``)."""
    ratio = size_px / max(image.size)
    return resize(image, tuple(max(1, round(side * ratio)) for side in image.size), resampling)


def crop_square(image: Image.Image, size_px: int, resampling: str) -> Image.Image:
    """Resize the shortest side to ``size_px`` (see ``resize``) and cut out the square in the middle."""
    ratio = size_px / min(image.size)
    image = resize(image, tuple(max(size_px, round(side * ratio)) for side in image.size), resampling)
    left, top = ((side - size_px) // 2 for side in image.size)
    return image.crop((left, top, left + size_px, top + size_px))


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


def to_input(image: Image.Image, size_px: int, mean: Sequence[float] = IMAGENET_MEAN,
             std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """An RGB image -> (1, 3, size_px, size_px): normalised, then padded with zeros at the bottom and right."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    mean, std = (torch.tensor(tuple(values)).view(1, 3, 1, 1) for values in (mean, std))
    return F.pad((pixels - mean) / std, (0, size_px - image.width, 0, size_px - image.height))
