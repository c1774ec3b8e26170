"""The options of ``apt_dense.load``, checked before anything is read."""
import warnings
from collections.abc import Collection, Sequence
from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch

from apt_dense.core.scorers import SCORERS
from apt_dense.mm.errors import DataError


def check_options(kept: Any, calibrate_on: Any, thresholds: Any, scorer: Any, max_tokens: Any) -> None:
    """Check what says which patches merge, see ``load``; warn of thresholds in the wrong order.

    Raises:
        DataError: for a value of another kind or out of range, or values that contradict each other.
    """
    if thresholds is not None and not (isinstance(thresholds, Collection) and all(map(_is_number, thresholds))):
        raise DataError(f'thresholds={thresholds!r} are no numbers: give one for each size of merged patches, fine to '
                        'coarse: (5.75, 4.0)')
    if thresholds is not None and any(coarse > fine for fine, coarse in pairwise(thresholds)):
        warnings.warn(f'thresholds {tuple(thresholds)} rise, and they run fine to coarse: that of a larger patch is '
                      'seldom the larger one', stacklevel=3)
    if scorer is not None:
        if not isinstance(scorer, str) or scorer not in SCORERS:
            raise DataError(f'scorer={scorer!r} is none: {", ".join(sorted(SCORERS))}')
        if thresholds is None and kept is None:
            raise DataError(f'scorer={scorer!r} wants thresholds of its own: give thresholds, or kept and calibrate_on')
    if max_tokens is not None and not (isinstance(max_tokens, Integral) and _is_number(max_tokens) and max_tokens > 0):
        raise DataError(f'max_tokens={max_tokens!r} must be a whole number from 1 on, or None')
    if kept is None:
        if calibrate_on is not None:
            raise DataError('calibrate_on without kept: say which share of the tokens to keep, kept=0.7')
        return
    if not _is_number(kept) or not 0 < kept <= 1:
        raise DataError(f'kept={kept!r} is no share of the tokens: give a number in (0, 1]')
    if thresholds is not None:
        raise DataError('kept finds thresholds: give it or thresholds, not both')
    if calibrate_on is None and kept != 1:
        raise DataError(f'kept={kept} needs pictures to find thresholds with: calibrate_on=FOLDER')
    if calibrate_on is not None and not _are_paths(calibrate_on):
        raise DataError(f'calibrate_on is {type(calibrate_on).__name__}: give a folder or a picture by its path, or a '
                        'list of them')


def _is_number(value: Any) -> bool:
    """Whether it is a real number; NaN is none, and neither is a bool."""
    return isinstance(value, Real) and not isinstance(value, bool) and value == value


def _are_paths(value: Any) -> bool:
    if isinstance(value, (str, Path)):
        return True
    return isinstance(value, Sequence) and len(value) > 0 and all(isinstance(one, (str, Path)) for one in value)


def find_device(name: str | torch.device) -> torch.device:
    """The device of a name; 'auto' is a GPU where there is one.

    Raises:
        DataError: if torch has none of that name here.
    """
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise DataError(f"device={name!r} is none: 'auto', 'cpu', 'cuda', 'cuda:1'") from error
    if device.type == 'cuda' and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise DataError(f'device={name!r}, and torch {torch.__version__} sees {torch.cuda.device_count()} GPUs: choose '
                        "another, or 'auto'")
    try:
        torch.zeros(1, device=device).tolist()  # a 'meta' tensor has no values
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise DataError(f"device={name!r} is not there: torch {torch.__version__} computes nothing on it: choose "
                        "'cpu', or 'auto'") from error
    return device
