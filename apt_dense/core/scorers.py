"""The scorers by name, as configs and tools know them."""
import functools
from collections.abc import Callable
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
