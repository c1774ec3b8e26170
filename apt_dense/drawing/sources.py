"""Images and videos to draw patches over, one picture after the other."""
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from apt_dense.calibration.images import VIDEO_SUFFIXES, find_images
from apt_dense.calibration.whole_images import split_whole
from apt_dense.extras import from_extra

with from_extra('images'):
    from PIL import Image


def find_inputs(paths: Sequence[Path], on_bad: Callable[[ValueError], object]) -> list[Path]:
    """The images and videos that are given, of folders the images in them and below, by a look at each file.

    Args:
        on_bad: called with the error of what is not there, is no image or is cut off, a video that cannot be read, or
            a folder without an image.
    """
    found = []
    for path in paths:
        try:
            if _is_video(path):
                with from_extra('mm'):
                    from apt_dense.mm.inference.sources import find_readable
                good, errors = find_readable([path])
            else:
                good, errors = split_whole(find_images([path]))
        except ValueError as error:
            good, errors = [], [error]
        found += good
        for error in errors:
            on_bad(error)
    return found


def read_all(paths: Sequence[Path], on_bad: Callable[[ValueError], object]) -> Iterator[tuple[str, Path | Image.Image]]:
    """Name and file, or name 'VIDEO#12' and frame, of what ``find_inputs`` has found.

    Args:
        on_bad: called with the error of a video without a frame that can be read.
    """
    for path in paths:
        if not _is_video(path):
            yield str(path), path
            continue
        with from_extra('mm'):
            from apt_dense.mm.inference.sources import pictures_of
        try:
            yield from ((frame.name, Image.fromarray(frame.array)) for frame in pictures_of(path))
        except ValueError as error:
            on_bad(error)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
