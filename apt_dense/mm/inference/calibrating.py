"""Scores of the inputs that a config makes of pictures."""
from collections.abc import Iterable

from apt_dense.calibration.thresholds import ScoreMaps
from apt_dense.mm.data.inputs import ConfigInputs


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
