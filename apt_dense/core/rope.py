"""Rotary position embedding of packed tokens, over two axes."""
import functools

import torch
from torch import Tensor

from apt_dense.core.layout import TokenLayout
from apt_dense.core.order import order_cells

ANCHORS = ('corner', 'center')
REFERENCE_CELLS = 16  # EVA-02 was pre-trained on 16 positions a side: all grids are scaled to that range
THETA = 10000.0


def check_anchor(anchor: str) -> None:
    """Raise ValueError for an unknown anchor."""
    if anchor not in ANCHORS:
        raise ValueError(f'unknown rope_anchor {anchor!r}: choose one of {ANCHORS}')


def rope_table(layout: TokenLayout, head_dim: int, windowed: bool, anchor: str = 'corner',
               dtype: torch.dtype = torch.float32) -> Tensor:
    """The turns of the tokens' positions: complex (T, head_dim / 2), cos + i sin of each angle.

    Position t of n along an axis turns the j-th pair of that axis by t / n * 16 * 10000**(-4 j / head_dim).  The first
    head_dim / 4 pairs belong to the row, the others to the column.  A class token stands at 0, so it is not turned: 1.

    Args:
        layout: the tokens.
        head_dim: channels of a head, a multiple of 4.
        windowed: positions inside the window (n = window_size) or in the image (n = the grid's side).
        anchor: where a coarse token stands: at its top-left cell ('corner', as the public APT code) or at the centre of
            its cells ('center', as the camera-ready paper).
        dtype: of the table's real and imaginary part, float32 or float64.

    Raises:
        ValueError: for an unknown anchor or a head_dim that is no multiple of 4.

    Source: EVA-02's rotary embedding with frequencies interpolated to 16 positions (its detection code has one table
    for windows and one for images).
    """
    check_anchor(anchor)
    if head_dim % 4:
        raise ValueError(f'head_dim={head_dim} is not a multiple of 4: half of it turns with the row, half with the '
                         'column, in pairs')
    turns = _turns_of_patches(layout.height, layout.width, layout.window_size, layout.num_scales, windowed, head_dim,
                              anchor, dtype, layout.starts.device)
    return turns[layout.position_index]


@functools.lru_cache(maxsize=16)  # of a few sizes of images, two each
def _turns_of_patches(height: int, width: int, window_size: int, num_scales: int, windowed: bool, head_dim: int,
                      anchor: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The turns of all patches that an image may have: a constant, whose rows are ``TokenLayout.position_index``."""
    tables = []
    # (An inference tensor could not be used in training later.)
    with torch.inference_mode(False), torch.no_grad():
        pairs = torch.arange(head_dim // 4, dtype=dtype, device=device)
        frequencies = THETA**(-4 * pairs / head_dim)
        for scale in range(num_scales):
            shape = (1, height >> scale, width >> scale)
            angles = []
            for axis, side in ((1, height), (2, width)):
                cells = torch.arange(0, side, 1 << scale, device=device)
                if windowed and window_size:
                    cells, side = cells % window_size, window_size
                position = cells.to(dtype)
                if anchor == 'center':
                    position = position + ((1 << scale) - 1) / 2
                angle = (position / side * REFERENCE_CELLS)[:, None] * frequencies
                angles.append(angle.unflatten(0, [-1 if part == axis else 1 for part in range(3)]).expand(*shape, -1))
            tables.append(order_cells(torch.cat(angles, -1), window_size >> scale, num_scales - scale))
        angle = torch.cat(tables)
        return torch.complex(angle.cos(), angle.sin())


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Turn the channel pairs (0, 1), (2, 3), ... of x (T, heads, head_dim) by the table's angles.

    A pair is a complex number, and to turn it is one multiplication: a twelfth of the time of four real ones on strided
    pairs (CPU).  The result has the table's precision, float32 at least: in bfloat16 neighbouring positions of 96 would
    coincide.

    A table of real numbers (T, head_dim / 2, 2) is for torch.compile, which makes one kernel of the real products, but
    none of complex ones.
    """
    if not table.is_complex():
        (even, odd), (cos, sin) = x.to(table.dtype).unflatten(-1, (-1, 2)).unbind(-1), table[:, None].unbind(-1)
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
    pairs = torch.view_as_complex(x.to(table.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table[:, None]).flatten(-2)
