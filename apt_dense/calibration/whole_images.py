"""Image files that are cut off or none at all, found before time is spent on them."""
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from apt_dense.calibration.images import find_images
from apt_dense.extras import from_extra

with from_extra('images'):
    from PIL import Image

# With what a file of a format ends.  MPO: a JPEG with others behind it.
LAST_BYTES = {'JPEG': b'\xff\xd9', 'MPO': b'\xff\xd9', 'PNG': b'IEND\xaeB`\x82', 'GIF': b';'}
TAIL_BYTES = 4096  # that are looked at: zeros may follow the end
# TIFF's tags of where the parts of a picture stand, and how long they are: strips, and tiles.
TIFF_PARTS = ((273, 279), (324, 325))


def check_image(path: Path) -> None:
    """Check that a file is an image, and whole: by its first bytes and its last, so that it costs little.

    A file that does not end as its format does is decoded, and so are formats whose end says nothing.  Damage in the
    middle of a file, and values that are no picture's, are found only when it is read.

    Raises:
        ValueError: if Pillow cannot read it.
    """
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            with Image.open(path) as image:
                header_is_cut = any(issubclass(one.category, UserWarning) for one in said)  # not: the image is large
                if header_is_cut or not _ends_whole(image, path):
                    image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f'{path} cannot be read as an image: {error}') from error


def _ends_whole(image: Image.Image, path: Path) -> bool:
    """Whether the end of a file shows that nothing of its image is missing; OSError if it shows the contrary."""
    with open(path, 'rb') as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - TAIL_BYTES, 0))
        tail = file.read()
        if image.format in LAST_BYTES and tail.rstrip(b'\0').endswith(LAST_BYTES[image.format]):
            return True
        if image.format == 'PNG' and LAST_BYTES['PNG'] not in path.read_bytes():  # OpenCV refuses it, Pillow does not
            raise OSError('image file is truncated')
        if image.format == 'WEBP':
            file.seek(4)
            return int.from_bytes(file.read(4), 'little') + 8 <= size
    if image.format == 'TIFF':
        parts = [(image.tag_v2[starts], image.tag_v2[lengths]) for starts, lengths in TIFF_PARTS
                 if starts in image.tag_v2 and lengths in image.tag_v2]
        ends = [start + length for part in parts for start, length in zip(*part, strict=True)]
        return bool(ends) and max(ends) <= size
    return False


def split_whole(paths: Iterable[Path]) -> tuple[list[Path], list[ValueError]]:
    """The files that ``check_image`` takes, and its error for each of the others."""
    good, errors = [], []
    for path in paths:
        try:
            check_image(path)
        except ValueError as error:
            errors.append(error)
        else:
            good.append(path)
    return good, errors


def find_whole_images(paths: list[Path]) -> list[Path]:
    """``find_images``, where all must be whole.

    Raises:
        ValueError: as ``find_images``, and for the first file that ``check_image`` refuses, with the number of others.
    """
    good, errors = split_whole(find_images(paths))
    if errors:
        more = f' ({len(errors) - 1} more cannot be read)' if len(errors) > 1 else ''
        raise ValueError(f'{errors[0]}{more}')
    return good
