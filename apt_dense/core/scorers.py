"""The scorers by name, as configs and tools know them."""
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from apt_dense.core.arguments import check_choice
from apt_dense.core.importance import (
    UPSAMPLING_FACTORS,
    patch_entropy,
    patch_laplacian,
    patch_random,
    patch_upsampling_error,
)
from apt_dense.core.resizing import patch_rate_distortion, patch_resizing_error
from apt_dense.core.variance import patch_variance, patch_variance_price

SCORERS: dict[str, Callable[..., list[Tensor]]] = {
    'entropy': patch_entropy,
    'laplacian_mean': partial(patch_laplacian, reduction='mean'),
    'laplacian_max': partial(patch_laplacian, reduction='max'),
    'laplacian_std': partial(patch_laplacian, reduction='std'),
    'upsampling_error': patch_upsampling_error,
    'upsampling_error_max': partial(patch_resizing_error, reduction='max', factors=UPSAMPLING_FACTORS),
    'resizing_error': patch_resizing_error,
    'resizing_error_max': partial(patch_resizing_error, reduction='max'),
    'rate_distortion': patch_rate_distortion,
    'rate_distortion_squared': partial(patch_rate_distortion, power=2.0),
    'variance': patch_variance,
    'variance_max': partial(patch_variance, reduction='max'),
    'variance_price': patch_variance_price,
    'random': patch_random,
}

# Scorers of squared errors of 0..1 images: no score is above 1.
UP_TO_ONE = frozenset({'upsampling_error', 'upsampling_error_max', 'resizing_error', 'resizing_error_max', 'variance',
                       'variance_max'})


def warn_of_thresholds(name: str, thresholds: Sequence[float]) -> None:
    """Warn of thresholds that no score of the scorer ``name`` reaches: those of another scorer, most likely."""
    if name in UP_TO_ONE and any(1 < threshold < math.inf for threshold in thresholds):
        warnings.warn(f'no score of {name!r} is above 1, and thresholds={tuple(thresholds)}: all patches of the sizes '
                      "with larger ones merge. If they are of another scorer, name it: scorer='entropy' for bits. Else "
                      f'find some: calibrate_thresholds.py --scorer {name}', stacklevel=3)


def get_scorer(name: str, compiled: bool = False) -> Callable[..., list[Tensor]]:
    """Return the scorer called ``name``, by torch.compile if wanted: f(image, patch_size, num_scales) -> list of maps.

    Raises:
        ValueError: for an unknown name.
    """
    check_choice('scorer', name, sorted(SCORERS))
    return partial(_score_compiled, name) if compiled else SCORERS[name]


def _score_compiled(name: str, *arguments: object, **options: object) -> list[Tensor]:
    """(A function that can be pickled, as a compiled one cannot.)"""
    return _compiled_scorer(name)(*arguments, **options)


@functools.cache
def _compiled_scorer(name: str) -> Callable[..., list[Tensor]]:
    return torch.compile(SCORERS[name])
