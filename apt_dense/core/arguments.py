"""Checks of the families' arguments."""
from collections.abc import Sequence


def check_heads(embed_dims: int, num_heads: int, multiple: int) -> int:
    """Channels of a head; ValueError unless that is a whole multiple."""
    for name, value in (('embed_dims', embed_dims), ('num_heads', num_heads)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f'{name}={value!r} must be a whole number from 1 on')
    if embed_dims % num_heads or embed_dims // num_heads % multiple:
        why = f'a multiple of {multiple} channels, which RoPE needs' if multiple > 1 else 'a whole number of channels'
        raise ValueError(f'embed_dims={embed_dims} over num_heads={num_heads} gives no head of {why}')
    return embed_dims // num_heads


def table_side(img_size: int, patch_size: int) -> int:
    """Cells a side of the table for square images of this size; ValueError if that is no whole number."""
    return grid_of(img_size, patch_size, 'pretrain_img_size')[0]


def grid_of(img_size: int | Sequence[int], patch_size: int, name: str = 'img_size') -> tuple[int, int]:
    """(height, width) in cells of images of this size, one number or two; ValueError if these are no whole numbers."""
    if not isinstance(patch_size, int) or patch_size < 1:
        raise ValueError(f'patch_size={patch_size!r} must be a whole number from 1 on')
    sides = tuple(img_size) if isinstance(img_size, Sequence) and not isinstance(img_size, str) else (img_size,) * 2
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 and side % patch_size == 0 for side in sides):
        raise ValueError(f'{name}={img_size!r} must be multiples of patch_size={patch_size}, in whole pixels: one '
                         'number, or (height, width)')
    return sides[0] // patch_size, sides[1] // patch_size


def block_indexes(name: str, indexes: Sequence[int], depth: int) -> frozenset[int]:
    """Resolve negative indexes; raise ValueError for one out of range."""
    outside = [index for index in indexes if not -depth <= index < depth]
    if outside:
        raise ValueError(f'{name} holds {outside}, but depth={depth}')
    return frozenset(index % depth for index in indexes)
