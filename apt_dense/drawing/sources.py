"""Images and videos to draw patches over, one picture after the other."""
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from apt_dense.calibration.images import VIDEO_SUFFIXES, find_images
from apt_dense.extras import from_extra

with from_extra('images'):
    from PIL import Image


def read_all(paths: Sequence[Path], on_bad: Callable[[ValueError], object]) -> Iterator[tuple[str, Path | Image.Image]]:
    """Name and file, or name 'VIDEO#12' and frame, of all that is given.

    Args:
        on_bad: called with the error of what is not there, a video that cannot be read, or a folder without an image.
    """
    for path in paths:
        try:
            if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
                with from_extra('mm'):
                    from apt_dense.mm.inference.sources import pictures_of
                yield from ((frame.name, Image.fromarray(frame.array)) for frame in pictures_of(path))
            else:
                yield from ((str(file), file) for file in find_images([path]))
        except ValueError as error:
            on_bad(error)
