"""Thresholds that keep a share of the tokens, of the inputs that a config makes of pictures."""
from collections.abc import Iterable, Sequence

from apt_dense.calibration.thresholds import ScoreMaps, find_thresholds, ratio_family
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


def thresholds_for(maps: ScoreMaps, kept: float, own: Sequence[float]) -> tuple[float, ...]:
    """The thresholds at which this share of the tokens is kept, padding left out.

    Args:
        kept: in (0, 1]; at 1 nothing is merged.
        own: thresholds, fine to coarse, whose proportions hold if they fall and are positive; else all are alike.

    Raises:
        ValueError: if the share is out of reach.
    """
    if kept == 1:
        return (-1.0,) * (maps.num_scales - 1)
    cells = maps.num_content_cells.sum().item()
    falling = all(0 < coarse <= fine for fine, coarse in zip(own, own[1:], strict=False))
    ratios = [coarse / fine for fine, coarse in zip(own, own[1:], strict=False)] if falling else [1.0]
    return find_thresholds(ratio_family(maps, ratios),
                           lambda values: maps.count_tokens(values, content_only=True).sum().item() / cells, kept)
