"""The reductions by name, as configs know them."""
import inspect
from collections.abc import Mapping
from typing import Any

from apt_dense.core.arguments import RULES, check_arguments, check_choice
from apt_dense.core.dropping import EViT, Random
from apt_dense.core.merging import DTEM, ToMe
from apt_dense.core.reduction import Reduction

REDUCTIONS = {'ToMe': ToMe, 'EViT': EViT, 'DTEM': DTEM, 'Random': Random}


def build_reduction(config: Mapping[str, Any], depth: int, embed_dims: int, head_dim: int) -> Reduction:
    """Build a reduction from ``dict(type='ToMe', kept=0.7)``.

    Raises:
        ValueError: for an unknown type, or arguments that do not fit.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"reduction={config!r} must be a dict, such as dict(type='ToMe', kept=0.7), or None")
    arguments = dict(config)
    kind = arguments.pop('type', None)
    check_choice('reduction type', kind, REDUCTIONS)
    if kind == 'DTEM':
        metric_dims = head_dim * (2 if embed_dims >= 1024 else 1)  # as in its public code
        arguments = dict(dict(embed_dims=embed_dims, metric_dims=metric_dims), **arguments)
    known = sorted(set(inspect.signature(REDUCTIONS[kind].__init__).parameters) - {'self', 'depth', 'embed_dims'})
    unknown = [name for name in arguments if name not in (*known, 'embed_dims')]
    if unknown:
        raise ValueError(f'reduction={dict(config)}: unexpected keyword argument {unknown[0]!r}, choose of {known}')
    named = {f'reduction.{name}': value for name, value in arguments.items()}
    check_arguments(**{name: value for name, value in named.items() if name in RULES})
    return REDUCTIONS[kind](depth, **arguments)
