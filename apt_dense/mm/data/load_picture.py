"""Pictures of any depth and number of channels, from files and from arrays."""
from collections.abc import Iterable

import cv2
import mmcv.transforms
import numpy as np
from mmcv.image.io import imread_flags
from mmengine.registry import Registry

from apt_dense.calibration.images import to_eight_bits


class LoadImageFromFile(mmcv.transforms.LoadImageFromFile):
    """mmcv's, for pictures of any kind, files and arrays: 8 bits and three channels, or an error that says why.

    OpenCV keeps the upper 8 of 16 bits, so that data of 12 bits become nearly black without a word; arrays are taken
    as they are, and fail later.  Here 16-bit values are shifted by the bits that count (``to_eight_bits``), grey
    pictures are repeated, and alpha is left out, as from files.

    ``register`` puts it into a package's registry under ``LoadImageFromFile`` and ``LoadImageFromNDArray``: configs
    name it as ever, and inferencers look for these names.

    Args:
        bits: how many bits of 16-bit values count, 8 to 16.  None: all of them, and a picture that leaves three
            quarters of their range empty is refused.
        to_float32, color_type, imdecode_backend, ignore_empty, backend_args: of ``mmcv.LoadImageFromFile``.  With
            color_type='unchanged' nothing is changed, with 'grayscale' there is one channel.

    Raises:
        ValueError: naming the file, for values or a shape that are not a picture's.
    """

    def __init__(self, to_float32: bool = False, color_type: str = 'color', imdecode_backend: str = 'cv2',
                 bits: int | None = None, **kwargs):
        super().__init__(color_type=color_type, imdecode_backend=imdecode_backend, **kwargs)
        if imdecode_backend == 'cv2' and color_type != 'unchanged':
            self.color_type = imread_flags[color_type] | cv2.IMREAD_ANYDEPTH  # mmcv has no name for that
        self.channels = {'unchanged': None, 'grayscale': 1, 'grayscale_ignore_orientation': 1}.get(color_type, 3)
        if bits is not None and not 8 <= bits <= 16:
            raise ValueError(f'bits={bits}: of 16-bit values 8 to 16 bits can count')
        self.as_float = to_float32
        self.bits = bits

    def transform(self, results: dict) -> dict | None:
        """Read ``img_path``, or take the array ``img`` (BGR, as OpenCV gives it): adds img, img_shape and ori_shape."""
        if 'img' in results:
            results['img_path'], name = None, 'the array'
        else:
            name = results['img_path']
            try:
                results = super().transform(results)
            except (OSError, cv2.error) as error:  # an empty file, and what Pillow cannot decode: neither names it
                if getattr(error, 'errno', None) is not None:
                    raise
                raise ValueError(f'{name} is no picture that can be read ({" ".join(str(error).split())}): repair or '
                                 'remove it') from error
            if results is None:  # ignore_empty
                return None
        image = results['img']
        if self.channels == 3:
            image = as_picture(image, name, self.bits)
        elif self.channels == 1:
            image = to_eight_bits(image, name, self.bits)
        results['img'] = image.astype(np.float32) if self.as_float else image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results


def load_as(steps: Iterable[object], path: str) -> np.ndarray:
    """The picture that a pipeline loads, before its other steps: (H, W, 3) uint8, BGR.

    Args:
        steps: of the pipeline; where none of them is a ``LoadImageFromFile``, that as it is.

    Raises:
        ValueError: as ``LoadImageFromFile``.
    """
    step = next((one for one in steps if isinstance(one, LoadImageFromFile)), None) or LoadImageFromFile()
    return as_picture(step(dict(img_path=path))['img'], path, bits=16)


def as_picture(image: np.ndarray, name: str, bits: int | None = None) -> np.ndarray:
    """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of any type -> (H, W, 3), uint8.

    Raises:
        ValueError: see ``LoadImageFromFile``.
    """
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(f'{name} has shape {image.shape}, wanted a picture (H, W), (H, W, 1), (H, W, 3), blue first, '
                         'or (H, W, 4) with alpha: put the channels last, and several pictures into a list')
    image = np.repeat(image, 3, -1) if image.shape[-1] == 1 else np.ascontiguousarray(image[..., :3])
    return to_eight_bits(image, name, bits)


def register(transforms: Registry) -> None:
    """Let a package's configs load pictures with ``LoadImageFromFile`` as it is here, files and arrays."""
    for name in ('LoadImageFromFile', 'LoadImageFromNDArray'):
        transforms.register_module(name=name, force=True, module=LoadImageFromFile)
