"""Headers of pictures, without their pixels."""
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from PIL import Image

LOADERS = ('LoadImageFromFile', 'LoadCheckedImage')


def reads_pictures(steps: Iterable[dict]) -> bool:
    """True if a pipeline loads its images as OpenCV or Pillow do: what they cannot read, it cannot either."""
    first = next((step for step in steps if 'Load' in str(step.get('type')) and 'Ann' not in str(step.get('type'))), {})
    return str(first.get('type')).endswith(LOADERS) and first.get('imdecode_backend') in (None, 'cv2', 'pillow')


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
