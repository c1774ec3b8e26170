"""The reductions by name, as configs know them."""
from collections.abc import Mapping
from typing import Any

from apt_dense.core.dropping import EViT, Random
from apt_dense.core.merging import DTEM, ToMe
from apt_dense.core.reduction import Reduction

REDUCTIONS = {'ToMe': ToMe, 'EViT': EViT, 'DTEM': DTEM, 'Random': Random}


def build_reduction(config: Mapping[str, Any], depth: int, embed_dims: int, head_dim: int) -> Reduction:
    """Build a reduction from ``dict(type='ToMe', kept=0.7)``.

    Raises:
        ValueError: for an unknown type, or arguments that do not fit.
    """
    arguments = dict(config)
    kind = arguments.pop('type', None)
    if kind not in REDUCTIONS:
        raise ValueError(f'unknown reduction type {kind!r}: choose one of {tuple(REDUCTIONS)}')
    if kind == 'DTEM':
        arguments = dict(dict(embed_dims=embed_dims, metric_dims=head_dim), **arguments)
    try:
        return REDUCTIONS[kind](depth, **arguments)
    except TypeError as error:
        raise ValueError(f'reduction={dict(config)}: {error}') from error
