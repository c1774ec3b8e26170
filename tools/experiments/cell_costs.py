"""About how long cells take."""
from collections.abc import Iterable
from typing import Any

from cells import Cell

# Seconds of one core, as measured with tools/experiments/configs on an AMD EPYC (Zen 4) whose other core was busy.
STEP = {'det': 1.4, 'seg': 1.4}  # a training step of the dense model
TEST = {'det': 55.0, 'seg': 38.0}  # the test of the dense model, 200 images
FIXED = 25.0  # start, thresholds, timing
SAVED_STEP, SAVED_TEST = 0.64, 0.3  # of these times where all tokens were merged: what the backbone takes


def nominal_seconds(cell: Cell, iterations: int) -> float:
    """The seconds of a cell that trains for so many iterations, by the figures above."""
    merged = 1 - cell.patches.kept if cell.patches else 0.0
    return (FIXED + (1 - SAVED_STEP * merged) * iterations * STEP[cell.task] +
            (1 - SAVED_TEST * merged) * TEST[cell.task])


def speed_factor(finished: Iterable[tuple[float, dict[str, Any]]]) -> float:
    """Measured seconds over nominal ones.

    Args:
        finished: nominal seconds and result of cells.  Failed and resumed ones do not count.
    """
    pairs = [(nominal, result['seconds']['wall']) for nominal, result in finished
             if result['status'] == 'done' and not result['resumed_at']]
    return sum(seconds for _, seconds in pairs) / sum(nominal for nominal, _ in pairs) if pairs else 1.0
