"""Photographs as a model sees them, with nothing but torch, numpy and Pillow."""
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_dense.core.normalisation import IMAGENET_MEAN, IMAGENET_STD
from apt_dense.extras import from_extra

with from_extra('images'):
    import numpy as np
    from PIL import Image, ImageOps

RESAMPLINGS = ('pillow', 'opencv')
# Where patches are drawn over a photograph: base patches and each merged size, fine to coarse, told apart by all eyes.
PATCH_COLOURS = ('#ffffff', '#ffc20a', '#e8308c', '#2f7bff', '#009e73', '#d55e00')
# Of photographs: Pillow also opens documents and films.
IMAGE_SUFFIXES = frozenset(('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp'))
VIDEO_SUFFIXES = frozenset(('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm'))
# 16-bit values that all lie below a quarter of their range are taken for data of fewer bits.
FEWEST_LARGEST = 2**14


def load_image(path: Path) -> Image.Image:
    """Read an image of any mode as RGB, turned as the data loaders turn it (EXIF).

    Raises:
        ValueError: if it cannot be read, or for values that are not a picture's (``to_eight_bits``).
    """
    try:
        image = Image.open(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f'{path} cannot be read as an image: {error}') from error
    return to_rgb(image, path)


def to_rgb(image: Image.Image, name: object) -> Image.Image:
    """An image of any mode as RGB, turned as its EXIF says.

    Args:
        name: for the errors.

    Raises:
        ValueError: as ``load_image``.
    """
    try:
        # Of 16-bit colours Pillow gives the upper 8 bits only, and tells it nowhere else.
        deep = any(';16' in str(tile[3]) for tile in getattr(image, 'tile', ())) and not image.mode.startswith('I')
        image = ImageOps.exif_transpose(image)
        if image.mode[0] not in 'IF':
            image = image.convert('RGB')
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f'{name} cannot be read as an image: {error}') from error
    if deep:
        _check_range(256 * int(np.asarray(image).max()) + 255, name)  # at most; the lower 8 bits are lost
    return image if image.mode == 'RGB' else Image.fromarray(to_eight_bits(np.asarray(image), name)).convert('RGB')


def to_eight_bits(values: np.ndarray, name: object, bits: int | None = None) -> np.ndarray:
    """The values of a picture, of any shape -> the same as uint8.

    uint8 stays.  uint16 is shifted: the upper 8 bits are taken, of the ``bits`` that count.  Numbers of other types are
    8-bit values if they lie in 0..255, floating-point ones rounded; whole numbers up to 65535 are 16-bit values.

    Args:
        name: of the file, for the errors.
        bits: 8 to 16; None: all 16.  Then values that all lie below 2**14 are refused: they are data of fewer bits, and
            would be dark or black.

    Raises:
        ValueError: for that, and for any other value.
    """
    if values.dtype == np.uint8:
        return values
    kind, lowest, largest = values.dtype.kind, values.min(initial=0), values.max(initial=0)
    if kind not in 'uif' or not (lowest >= 0 and largest <= (255 if kind == 'f' else 65535)):  # NaN is neither
        raise ValueError(f'{name} holds {values.dtype} values from {lowest} to {largest}, wanted 8 or 16 bits: 0 to '
                         '255, or 0 to 65535 in whole numbers')
    if kind == 'f':
        if 0 < largest <= 1:
            raise ValueError(f'{name} holds {values.dtype} values up to {largest}, wanted 0 to 255: multiply by 255')
        return np.rint(values).astype(np.uint8)
    if largest <= 255 and (kind == 'i' or values.dtype.itemsize > 2):
        return values.astype(np.uint8)
    if bits is None:
        _check_range(int(largest), name)
    elif largest >= 2**bits:
        raise ValueError(f'{name} holds {largest}, which has more than bits={bits}: set '
                         f'bits={int(largest).bit_length()}')
    return (values >> (bits or 16) - 8).astype(np.uint8)


def _check_range(largest: int, name: object) -> None:
    """Raise ValueError for a 16-bit picture whose largest value is one of fewer bits; all black is black."""
    bits = largest.bit_length()
    if 0 < largest < FEWEST_LARGEST:
        raise ValueError(f'{name} has 16 bits a value, and its largest, {largest}, has {bits}: as 8 bits it would be '
                         'dark or black. Write the values over the whole range, or as 8 bits; or say in a config how '
                         f"many bits count, dict(type='LoadImageFromFile', bits={max(bits, 8)}); 16: it is that dark")


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
