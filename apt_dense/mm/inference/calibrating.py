"""Pictures to find thresholds with, and the scores of the inputs that a config makes of them."""
from collections.abc import Iterable, Sequence
from pathlib import Path

from apt_dense.calibration.thresholds import ScoreMaps
from apt_dense.calibration.whole_images import find_whole_images
from apt_dense.mm.data.inputs import ConfigInputs
from apt_dense.mm.errors import DataError


def calibration_images(source: str | Path | Sequence[str | Path], setting: str) -> list[Path]:
    """The pictures of a path or several, of folders those in them and below.

    Args:
        setting: what they are for, for the error.

    Raises:
        DataError: for a path that is not there, a folder without a picture, or a file that is none or is cut off.
    """
    paths = [source] if isinstance(source, (str, Path)) else source
    try:
        return find_whole_images([Path(path).expanduser() for path in paths])
    except ValueError as error:
        raise DataError(f'{setting}: {error}') from error


def score_all(inputs: ConfigInputs, indexes: Iterable[int] | None = None) -> ScoreMaps:
    """Score pictures: those of the indexes, by default all.

    Raises:
        ValueError: for a picture that cannot be read.
    """
    maps = ScoreMaps(inputs.chooser.num_scales)
    for index in range(len(inputs)) if indexes is None else indexes:
        for scores, content_cells in inputs.score(index):
            maps.add(scores, content_cells)
    return maps
