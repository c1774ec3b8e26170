"""Which layer of a model a parameter belongs to, by its name."""
import re

from apt_dense.core.embed import ADDED_PARAMETERS

FIRST_LAYER = re.compile(r'(?:pos_embed|cls_token|reg_token|(?:patch_embed\.proj|norm_pre)\.(?:weight|bias))')
LAST_NORM = re.compile(r'norm\.(?:weight|bias)')
BLOCK = re.compile(r'blocks\.(\d+)\.')


def layer_of(name: str, depth: int, prefix: str = '') -> int:
    """The layer of a parameter of a ``PackedViT`` with so many blocks, by its name below ``prefix``.

    0: positions, rows before the patches, patch embedding and a norm before the first block.  N + 1: block N.
    depth + 1: the last norm, and what a reduction learns.

    Raises:
        ValueError: for a name that is none of these, or a block that is not there.
    """
    inner = name.removeprefix(prefix)
    if FIRST_LAYER.fullmatch(inner) or inner in ADDED_PARAMETERS:
        return 0
    if LAST_NORM.fullmatch(inner) or inner.startswith('reduction.'):
        return depth + 1
    block = BLOCK.match(inner)
    if block is None:
        raise ValueError(f'parameter {name!r} has no layer: the backbone has pos_embed, cls_token, reg_token, '
                         'patch_embed.*, norm_pre.*, blocks.N.* and norm.*')
    if int(block[1]) >= depth:
        raise ValueError(f'parameter {name!r} lies beyond num_layers={depth}: set num_layers to the depth of the '
                         'backbone')
    return int(block[1]) + 1
