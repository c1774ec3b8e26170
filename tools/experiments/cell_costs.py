"""About how long cells take."""
from collections.abc import Iterable
from typing import Any

from cells import Cell

# Seconds of one core, as measured for tools/experiments/configs on an AMD EPYC (Zen 4) that others used too.
STEP = {'det': 1.6, 'seg': 1.6}  # a training step of the dense model
TEST = {'det': 80.0, 'seg': 50.0}  # the test of the dense model, 200 images
FIXED = 40.0  # start, thresholds, timing
BACKBONE = 0.6  # of the time is spent in the backbone, whose part goes with the tokens


def nominal_seconds(cell: Cell, iterations: int) -> float:
    """The seconds of a cell that trains for so many iterations, by the figures above."""
    kept = cell.patches.kept if cell.patches else 1.0
    share = 1 - BACKBONE * (1 - kept)
    return FIXED + share * (iterations * STEP[cell.task] + TEST[cell.task])


def speed_factor(finished: Iterable[tuple[float, dict[str, Any]]]) -> float:
    """Measured seconds over nominal ones.

    Args:
        finished: nominal seconds and result of cells.  Failed and resumed ones do not count.
    """
    pairs = [(nominal, result['seconds']['wall']) for nominal, result in finished
             if result['status'] == 'done' and not result['resumed_at']]
    return sum(seconds for _, seconds in pairs) / sum(nominal for nominal, _ in pairs) if pairs else 1.0
