"""Headers of pictures, without their pixels."""
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image


@contextmanager
def open_header(path: str) -> Iterator[Image.Image]:
    """``Image.open`` for its size and EXIF data, whatever the size.

    Pillow refuses pictures beyond a number of pixels, in case they are decoded; here they are not, and OpenCV, which
    decodes them, has a limit of its own.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as picture:
            yield picture
    finally:
        Image.MAX_IMAGE_PIXELS = limit
