"""Rows of packed models in the order of other libraries."""
import torch
from torch import Tensor

from apt_dense import PackedViT, TokenLayout


@torch.no_grad()
def tokens_of_blocks(model: PackedViT, x: Tensor) -> list[Tensor]:
    """After each block, and after the last norm: (B, P + H * W, C), the prefix, then the cells row by row."""
    rows = []
    hooks = [block.register_forward_hook(lambda block, given, output: rows.append(output)) for block in model.blocks]
    last, layout = model.forward_tokens(x)
    for hook in hooks:
        hook.remove()
    return [in_raster_order(output, layout) for output in [*rows, last]]


def in_raster_order(rows: Tensor, layout: TokenLayout) -> Tensor:
    """(T, C) -> (B, P + H * W, C); a merged token is repeated over its cells."""
    cells = layout.expand(rows).flatten(2).transpose(1, 2)
    prefix = rows[layout.scales < 0].view(layout.batch_size, layout.num_prefix, rows.shape[-1])
    return torch.cat([prefix, cells], 1)
