"""Rotary position embedding of packed tokens, over two axes."""
import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from apt_dense.core.arguments import check_choice
from apt_dense.core.layout import TokenLayout
from apt_dense.core.order import order_cells

ANCHORS = ('corner', 'center', 'interpolated')


def check_anchor(anchor: str, name: str = 'rope_anchor') -> None:
    """Raise ValueError for an unknown anchor."""
    check_choice(name, anchor, ANCHORS)


@dataclass(frozen=True)
class Rotary:
    """How a family of models turns queries and keys by their position.

    Position t of n along an axis has the coordinate ``scale * (t + offset) / n + shift``, and turns the j-th pair of
    that axis by this times theta**(-4 j / head_dim).  Half of the pairs belong to the row, half to the column.

    Attributes:
        head_dim: channels of a head, a multiple of 4.
        theta: the base of the frequencies.
        scale, offset, shift: of the coordinate.
        halves: the j-th pair are the channels j and j + head_dim / 2; else 2 j and 2 j + 1.
        column_first: the first half of the pairs belongs to the column; else to the row.

    Raises:
        ValueError: for a head_dim that is no multiple of 4.
    """
    head_dim: int
    theta: float = 10000.0
    scale: float = 1.0
    offset: float = 0.0
    shift: float = 0.0
    halves: bool = False
    column_first: bool = False

    def __post_init__(self):
        if self.head_dim % 4:
            raise ValueError(f'head_dim={self.head_dim} is not a multiple of 4: half of it turns with the row, half '
                             'with the column, in pairs')

    @classmethod
    def over_reference(cls, head_dim: int, cells: int, **options) -> 'Rotary':
        """Positions are scaled to a reference grid of ``cells`` a side, as EVA-02 (16) and SAM 3 (24) do."""
        return cls(head_dim, scale=cells, **options)

    @classmethod
    def over_centers(cls, head_dim: int, theta: float = 100.0) -> 'Rotary':
        """DINOv3's: the centres of the cells run from -1 to 1 over an axis, and a unit is a whole turn."""
        return cls(head_dim, theta, scale=4 * math.pi, offset=0.5, shift=-2 * math.pi, halves=True)

    def angles(self, position: Tensor, side: int) -> Tensor:
        """(N,) cells along an axis of ``side`` cells -> (N, head_dim / 4), in the position's precision."""
        pairs = torch.arange(self.head_dim // 4, dtype=position.dtype, device=position.device)
        coordinate = self.scale * (position + self.offset) / side + self.shift
        return coordinate[:, None] * self.theta**(-4 * pairs / self.head_dim)


def rope_table(layout: TokenLayout, rotary: Rotary, windowed: bool, anchor: str = 'corner',
               dtype: torch.dtype = torch.float32) -> Tensor:
    """The turns of the tokens' positions: complex (T, head_dim / 2), cos + i sin of each angle; 1 for a prefix row.

    Args:
        layout: the tokens.
        rotary: the model's.
        windowed: positions inside the window (n = window_size) or in the image (n = the grid's side).
        anchor: where a coarse token stands: at its top-left cell ('corner', as the public APT code); at the centre of
            its cells ('center', as the camera-ready paper); or at all of them ('interpolated'): cosine and sine are the
            means over its cells, the encodings of the grid of cells resampled to the coarser grid.  A product of a
            query and a key is then the mean of those that it would have at each cell: a pair that turns far within a
            token counts less, and cells whose turns agree give that turn.
        dtype: of the table's real and imaginary part, float32 or float64.

    Raises:
        ValueError: for an unknown anchor.

    Source: EVA-02's rotary embedding with frequencies interpolated to 16 positions (its detection code has one table
    for windows and one for images); DINOv3's and SAM 3's.
    """
    check_anchor(anchor)
    turns = _turns_of_patches(layout.height, layout.width, layout.window_size, layout.num_scales, windowed, rotary,
                              anchor, dtype, layout.starts.device)
    return turns[layout.position_index]


@functools.lru_cache(maxsize=16)  # of a few sizes of images, two each
def _turns_of_patches(height: int, width: int, window_size: int, num_scales: int, windowed: bool, rotary: Rotary,
                      anchor: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The turns of all patches that an image may have, and 1: a constant, with rows ``TokenLayout.position_index``."""
    tables = []
    # (An inference tensor could not be used in training later.)
    with torch.inference_mode(False), torch.no_grad():
        for scale in range(num_scales):
            shape = (1, height >> scale, width >> scale)
            turns = []
            for axis, side in ((1, height), (2, width)):
                cells = torch.arange(side, dtype=dtype, device=device)
                if windowed and window_size:
                    cells, side = cells % window_size, window_size
                turn = _turns_of_axis(rotary, cells, side, scale, anchor)
                turns.append(turn.unflatten(0, [-1 if part == axis else 1 for part in range(3)]).expand(*shape, -1))
            turns = torch.cat(turns[::-1] if rotary.column_first else turns, -1)
            tables.append(order_cells(turns, window_size >> scale, num_scales - scale))
        return torch.cat([*tables, torch.ones_like(tables[0][:1])])


def _turns_of_axis(rotary: Rotary, cells: Tensor, side: int, scale: int, anchor: str) -> Tensor:
    """The turns of the patches of a scale along an axis, complex (N / 2**s, head_dim / 4).

    Args:
        cells: (N,), the positions of the cells, of ``side`` along the axis.
    """
    groups = cells.unflatten(0, (-1, 1 << scale))
    if anchor == 'interpolated':
        angles = rotary.angles(cells, side).unflatten(0, groups.shape)
        return torch.complex(angles.cos().mean(1), angles.sin().mean(1))
    angles = rotary.angles(groups[:, 0] if anchor == 'corner' else groups.mean(1), side)
    return torch.complex(angles.cos(), angles.sin())


def apply_rope(x: Tensor, table: Tensor, halves: bool = False) -> Tensor:
    """Turn channel pairs of x (T, heads, head_dim) by the table's angles: (0, 1), (2, 3), ... or see ``Rotary.halves``.

    A pair of neighbours is a complex number, and to turn it is one multiplication: a twelfth of the time of four real
    ones on strided pairs (CPU).  Halves are written where they belong: an eighth of the formula's time.  The result has
    the table's precision, float32 at least: in bfloat16 neighbouring positions of 96 would coincide.

    A table of real numbers (T, head_dim / 2, 2) is for torch.compile, which makes one kernel of the real products, but
    none of complex ones.
    """
    if table.is_complex() and not halves:
        pairs = torch.view_as_complex(x.to(table.real.dtype).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * table[:, None]).flatten(-2)
    cos, sin = (torch.view_as_real(table) if table.is_complex() else table)[:, None].unbind(-1)
    x = x.to(cos.dtype)
    if halves and torch.compiler.is_compiling():
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
    if halves:
        return _TurnHalves.apply(x, cos.contiguous(), sin.contiguous())
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


class _TurnHalves(torch.autograd.Function):
    """Turn the pairs of channels (j, j + head_dim / 2) by angles, whose cosine and sine take no gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.table = cos, sin  # constants of the layout, which recomputation need not bring back
        return _turn_halves(x, cos, sin)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.table
        return _turn_halves(grad, cos, -sin), None, None


def _turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = torch.empty_like(x)
    (first, second), (left, right) = x.chunk(2, -1), turned.chunk(2, -1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-1)
    torch.mul(first, sin, out=right).addcmul_(second, cos)
    return turned
