"""Thresholds for a share of the tokens, from those that a model has."""
from collections.abc import Sequence
from itertools import pairwise

from apt_dense.calibration.thresholds import ScoreMaps, find_thresholds, ratio_family


def thresholds_for(maps: ScoreMaps, kept: float, own: Sequence[float]) -> tuple[float, ...]:
    """The thresholds at which this share of the tokens is kept, padding left out.

    Args:
        kept: in (0, 1]; at 1 nothing is merged.
        own: thresholds, fine to coarse, whose proportions hold if they fall and are positive; else, or without any, all
            are alike.

    Raises:
        ValueError: if the share is out of reach.
    """
    if kept == 1:
        return (-1.0,) * (maps.num_scales - 1)
    cells = maps.num_content_cells.sum().item()
    pairs = list(pairwise(own))
    falling = pairs and all(0 < coarse <= fine for fine, coarse in pairs)
    ratios = [coarse / fine for fine, coarse in pairs] if falling else [1.0]
    return find_thresholds(ratio_family(maps, ratios),
                           lambda values: maps.count_tokens(values, content_only=True).sum().item() / cells, kept)
