"""Checks of the arguments of families, choosers and embeddings: what each must be, in one place."""
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What holds for an argument, and the same in words."""
    holds: Callable[[Any], bool]
    wanted: str


def is_whole(value: Any, least: int = 0) -> bool:
    """Whether it is a whole number from ``least`` on; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    """Whether it is a finite number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _whole(least: int) -> Rule:
    return Rule(lambda value: is_whole(value, least), f'must be a whole number from {least} on')


def _or_none(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.holds(value), f'{rule.wanted}, or None')


_POSITIVE = Rule(lambda value: is_number(value) and value > 0, 'must be a finite number above 0')
_FLAG = Rule(lambda value: isinstance(value, bool), 'must be True or False')
RULES = {
    **dict.fromkeys(('embed_dims', 'depth', 'num_heads', 'patch_size', 'num_scales'), _whole(1)),
    **dict.fromkeys(('window_size', 'num_registers', 'prefix_positions', 'num_prefix', 'table_cells'), _whole(0)),
    **dict.fromkeys(('graph_tokens', 'max_tokens'), _or_none(_whole(1))),
    **dict.fromkeys(('mlp_ratio', 'rope_theta', 'rope_cells'), _POSITIVE), 'layer_scale': _or_none(_POSITIVE),
    'norm_eps': Rule(lambda value: is_number(value) and value >= 0, 'must be a finite number from 0 on'),
    'drop_path_rate': Rule(lambda value: is_number(value) and 0 <= value < 1, 'must be at least 0 and less than 1'),
    **dict.fromkeys(('with_cls_token', 'patch_bias', 'bias', 'qkv_bias', 'pre_norm', 'final_norm', 'compiled',
                     'with_cp', 'pad_mlp', 'keep_casts', 'proportional_attention'), _FLAG),
    'reduction.kept': _or_none(Rule(lambda value: is_number(value) and 0 < value <= 1,
                                    'must be above 0 and at most 1')),
    **dict.fromkeys(('reduction.proportional', 'reduction.fuse'), _FLAG), 'reduction.seed': _whole(0),
    **dict.fromkeys(('reduction.nearest', 'reduction.metric_dims'), _whole(1)),
    **dict.fromkeys(('reduction.tau1', 'reduction.tau2'), _POSITIVE),
    'in_channels': _whole(4), 'out_channels': _whole(1),
    'make_block': Rule(callable, 'must be a function: rate of drop path -> a block')}


def check_arguments(**arguments: Any) -> None:
    """Raise ValueError for an argument that breaks its rule; the names are those of ``RULES``."""
    for name, value in arguments.items():
        rule = RULES[name]
        if not rule.holds(value):
            raise ValueError(f'{name}={value!r} {rule.wanted}')


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raise ValueError unless an argument is one of some names."""
    if value not in tuple(choices):  # a dict's own test would fail for a list
        raise ValueError(f'unknown {name} {value!r}: choose one of {tuple(choices)}')


def check_heads(embed_dims: int, num_heads: int, multiple: int) -> int:
    """Channels of a head; ValueError unless that is a whole multiple."""
    check_arguments(embed_dims=embed_dims, num_heads=num_heads)
    if embed_dims % num_heads or embed_dims // num_heads % multiple:
        why = f'a multiple of {multiple} channels, which RoPE needs' if multiple > 1 else 'a whole number of channels'
        raise ValueError(f'embed_dims={embed_dims} over num_heads={num_heads} gives no head of {why}: choose another '
                         'num_heads')
    return embed_dims // num_heads


def table_side(img_size: int, patch_size: int) -> int:
    """Cells a side of the table for square images of this size; ValueError if that is no whole number."""
    height, width = grid_of(img_size, patch_size, 'pretrain_img_size')
    if height != width:
        raise ValueError(f'pretrain_img_size={img_size!r}: the table of positions is square, give one number')
    return height


def grid_of(img_size: int | Sequence[int], patch_size: int, name: str = 'img_size') -> tuple[int, int]:
    """(height, width) in cells of images of this size, one number or two; ValueError if these are no whole numbers."""
    check_arguments(patch_size=patch_size)
    sides = tuple(img_size) if isinstance(img_size, Sequence) and not isinstance(img_size, str) else (img_size,) * 2
    if len(sides) != 2 or not all(is_whole(side, 1) and side % patch_size == 0 for side in sides):
        raise ValueError(f'{name}={img_size!r} must be multiples of patch_size={patch_size}, in whole pixels: one '
                         'number, or (height, width)')
    return sides[0] // patch_size, sides[1] // patch_size


def block_indexes(name: str, indexes: Collection[int], depth: int) -> frozenset[int]:
    """Resolve negative indexes; raise ValueError for one out of range, and for what are no numbers of blocks."""
    if isinstance(indexes, str) or not isinstance(indexes, Collection):
        raise ValueError(f'{name}={indexes!r} must be a sequence of numbers of blocks, such as ({depth - 1},)')
    outside = [index for index in indexes if not is_whole(index, -depth) or index >= depth]
    if outside:
        raise ValueError(f'{name} holds {outside}, but depth={depth}: give whole numbers from {-depth} to {depth - 1}')
    return frozenset(index % depth for index in indexes)


def output_indexes(indexes: Collection[int], depth: int) -> frozenset[int]:
    """``block_indexes`` of the outputs: one at least, and none of them twice."""
    found = block_indexes('out_indices', indexes, depth)
    if not found or len(found) < len(tuple(indexes)):
        raise ValueError(f'out_indices={tuple(indexes)} must name one block at least, and none of them twice: (-1,) is '
                         'the last one')
    return found


def mlp_units(embed_dims: int, mlp_ratio: float, rounded: Callable[[float], int] = round) -> int:
    """Units of the MLP; ValueError for a ratio that leaves none."""
    check_arguments(mlp_ratio=mlp_ratio)
    units = rounded(embed_dims * mlp_ratio)
    if units < 1:
        raise ValueError(f'mlp_ratio={mlp_ratio} of embed_dims={embed_dims} leaves an MLP without units: set it to '
                         f'{1 / embed_dims:.3g} at least')
    return units


def default_arguments(family: type, base: type) -> dict[str, Any]:
    """The arguments that a family of a base class takes: names -> defaults."""
    found = {}
    for owner in reversed(family.__mro__):
        if issubclass(owner, base):
            parameters = inspect.signature(owner.__init__).parameters
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                found = {}  # it takes those alone that it names
            found |= {name: parameter.default for name, parameter in parameters.items()
                      if parameter.default is not parameter.empty}
    return {name: default for name, default in found.items() if name not in family.fixed}


def check_names(family: type, names: Iterable[str]) -> None:
    """Raise TypeError for an argument that a model of the family does not take."""
    own = inspect.signature(family.__init__).parameters
    known = {*family.default_arguments(), *(name for name in own if own[name].kind is own[name].KEYWORD_ONLY)}
    for name in names:
        if name in family.fixed:
            raise TypeError(f'unexpected keyword argument {name!r}: {family.__name__} has {name}='
                            f'{family.fixed[name]!r} by itself, leave it out')
        if name not in known:
            raise TypeError(f'unexpected keyword argument {name!r}: {family.__name__} has {sorted(known)}')
