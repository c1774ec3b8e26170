"""What can be predicted, as one picture after the other: files, folders, videos, arrays, lists of them."""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from apt_dense.calibration.images import VIDEO_SUFFIXES, find_images, to_rgb
from apt_dense.calibration.whole_images import check_image
from apt_dense.mm.data.load_picture import as_picture
from apt_dense.mm.errors import DataError

NO_PICTURE = 'give a JPEG, PNG, WebP, TIFF or BMP file that is not damaged'
WANTED = ('a path of a picture, a folder or a video, an array (H, W, 3) in RGB, a PIL image, or a list or generator of '
          'them')


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: its path; of a video's frame 'VIDEO#12', counted from 0; of an array 'array 0', counted in its list.
        array: (H, W, 3) uint8, RGB; None for a file, which the model's own pipeline reads.
        load: what reads such a file, path -> (H, W, 3) uint8, RGB.
    """
    name: str
    array: np.ndarray | None = None
    load: Callable[[str], np.ndarray] | None = None

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8, RGB, turned as the camera says (EXIF), as the model sees it."""
        return self.load(self.name) if self.array is None else self.array


def pictures_of(source: Any, on_bad: Callable[[DataError], object] | None = None) -> Iterator[Picture]:
    """The pictures of a source, see ``WANTED``; those of a folder and below it in the order of their names.

    Args:
        on_bad: called with the error of a part of the source that cannot be read, which is then left out.

    Raises:
        DataError: without ``on_bad``, for a path that is not there, a folder without a picture, a video that cannot be
            read, an array that is no picture, or another type.
    """
    for index, one in enumerate(source if _many(source) else [source]):
        try:
            yield from _one(one, index)
        except DataError as error:
            if on_bad is None:
                raise
            on_bad(error)


def _one(source: Any, index: int) -> Iterator[Picture]:
    if isinstance(source, Image.Image):
        yield Picture(f'array {index}', _as_array(source, f'array {index}'))
    elif isinstance(source, np.ndarray):
        yield Picture(f'array {index}', _checked_array(source, f'array {index}'))
    elif isinstance(source, (str, Path)):
        path = _checked_path(source)
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
            yield from _frames(path)
            return
        yield from (Picture(str(found)) for found in _files(path))
    else:
        hint = ': tensor.permute(1, 2, 0).numpy() of a tensor (3, H, W)' if isinstance(source, Tensor) else ''
        raise DataError(f'got {type(source).__name__} to predict, wanted {WANTED}{hint}')


def _checked_path(source: str | Path) -> Path:
    if '://' in str(source):
        raise DataError(f'{source} is an address: download it, and give the file')
    if not str(source):
        raise DataError(f'got an empty path, wanted {WANTED}')
    return Path(source).expanduser()


def find_readable(sources: Sequence[str | Path]) -> tuple[list[Path], list[DataError]]:
    """The pictures and videos of some paths, of folders those in them and below, by their first bytes and their last.

    Returns:
        Those that a reader knows and that are whole, see ``check_image``, and an error for each of the others.

    Raises:
        DataError: for a path that is not there, an address, or a folder without a picture.
    """
    good, bad = [], []
    for source in sources:
        path = _checked_path(source)
        video = path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
        for file in [path] if video else _files(path):
            if video:
                wrong = '' if cv2.VideoCapture(str(file)).isOpened() else 'no frame was found in it'
            else:
                wrong = _wrong_with(file)
            if wrong:
                bad.append(DataError(f'{file} cannot be read as a {"video" if video else "picture"}: {wrong}'))
            else:
                good.append(file)
    return good, bad


def check_readable(source: Any) -> None:
    """Look at all files of a source, see ``WANTED``, before the first is read; a generator cannot be looked at.

    Raises:
        DataError: as ``find_readable``, and for the first file that it refuses.
    """
    if isinstance(source, Iterator):
        return
    paths = [one for one in (source if _many(source) else [source]) if isinstance(one, (str, Path))]
    _, bad = find_readable(paths)
    if bad:
        raise DataError(f'{bad[0]}{f" ({len(bad) - 1} more cannot be read)" if len(bad) > 1 else ""}')


def _wrong_with(file: Path) -> str:
    """Why neither Pillow nor OpenCV takes a file, '' if one of them does."""
    try:
        check_image(file)
    except ValueError as error:
        cause = error.__cause__
    else:
        return ''
    if not isinstance(cause, (UnidentifiedImageError, Image.DecompressionBombError)):
        return f'{cause}: {NO_PICTURE}'
    # Of formats that only OpenCV knows, and pictures that are too large for Pillow.  In memory, as mmcv does it: from a
    # file OpenCV fills up with grey what is cut off.
    decoded = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR) if cv2.haveImageReader(str(file)) else None
    return NO_PICTURE if decoded is None else ''


def _many(source: Any) -> bool:
    """Whether a source holds others: a list, a tuple, a generator."""
    return isinstance(source, (Sequence, Iterator)) and not isinstance(source, (str, bytes, bytearray))


def _as_array(image: Image.Image, name: str) -> np.ndarray:
    try:
        return np.asarray(to_rgb(image, name))
    except ValueError as error:
        raise DataError(str(error)) from error


def _checked_array(array: np.ndarray, name: str) -> np.ndarray:
    """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of any type of pixels -> (H, W, 3) uint8, in the same order."""
    if array.ndim not in (2, 3) or 0 in array.shape or array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        hint = ''
        if array.ndim == 3 and array.shape[0] in (1, 3):
            hint = ': put the channels last, array.transpose(1, 2, 0)'
        elif array.ndim == 4:
            hint = ': give a batch as a list of pictures, list(array)'
        raise DataError(f'{name} has shape {array.shape}, wanted (H, W, 3) in RGB, or (H, W){hint}')
    try:
        return as_picture(array, name)
    except ValueError as error:
        raise DataError(str(error)) from error


def _frames(path: Path) -> Iterator[Picture]:
    capture = cv2.VideoCapture(str(path))
    try:
        number = 0
        while True:
            there, frame = capture.read()
            if not there:
                break
            yield Picture(f'{path}#{number}', np.ascontiguousarray(frame[..., ::-1]))
            number += 1
    finally:
        capture.release()
    if not number:
        raise DataError(f'{path} cannot be read as a video: no frame was found in it')


def count_pictures(source: Any) -> int | None:
    """How many there are, None where that is not known without reading them: for a progress bar.

    Raises:
        DataError: for a path that is not there, or a folder without a picture.
    """
    if isinstance(source, Iterator):
        return None
    if _many(source):
        counts = [count_pictures(one) for one in source]
        return None if None in counts else sum(counts)
    if not isinstance(source, (str, Path)):
        return 1
    path = Path(source).expanduser()
    if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
        frames = int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT))
        return frames if frames > 0 else None
    return len(_files(path))


def _files(path: Path) -> list[Path]:
    """A file, or the pictures in a folder and below."""
    try:
        return find_images([path])
    except ValueError as error:
        raise DataError(str(error)) from error
