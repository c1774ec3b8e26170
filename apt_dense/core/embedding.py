"""What enters the blocks of a ``PackedViT``: patches with positions, rows before them; and how all of it starts."""
import torch
from torch import Tensor, nn

from apt_dense.core.embed import position_tables
from apt_dense.core.layout import TokenLayout


def embedded_rows(model: nn.Module, x: Tensor, layout: TokenLayout) -> Tensor:
    """(B, 3, H, W) and its layout -> (T, C): embedded patches with positions, prefix rows included."""
    positions = None
    if model.pos_embed is not None:
        sizes = (layout.height, layout.width, layout.window_size, layout.num_scales)
        positions = model.tables.get(sizes, [model.pos_embed], lambda: position_tables(
            model.position_table(layout.height, layout.width), layout, model.pos_anchor))
    rows = model.patch_embed(x, layout.without_prefix, positions)
    if layout.num_prefix:
        prefix = model.prefix().to(rows.dtype)
        lengths = [length - layout.num_prefix for length in layout.images.lengths]
        rows = torch.cat([part for image in rows.split(lengths) for part in (prefix, image)])
    return rows if model.norm_pre is None else model.norm_pre(rows)


def prefix_rows(model: nn.Module) -> Tensor:
    """The rows before each image's patches, with their positions: (P, C)."""
    tokens = [token[0] for token in (model.cls_token, model.reg_token) if token is not None]
    rows = torch.cat(tokens) if len(tokens) > 1 else tokens[0]
    placed = model.prefix_positions if model.pos_embed is not None else 0
    positions = model.pos_embed[0, :placed] if placed else None
    if not placed or placed >= len(rows):
        return rows + positions if placed else rows
    return torch.cat([rows[:placed] + positions, rows[placed:]])


def init_parameters(model: nn.Module) -> None:
    """Truncated normal of 0.02 for weights, positions and prefix, zero for biases.

    The added parameters of the patch embedding keep their own start.
    """
    for parameter in (model.pos_embed, model.cls_token, model.reg_token, model.patch_embed.proj.weight):
        if parameter is not None:
            nn.init.trunc_normal_(parameter, std=0.02)
    if model.patch_embed.proj.bias is not None:
        nn.init.zeros_(model.patch_embed.proj.bias)
    for module in model.blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
