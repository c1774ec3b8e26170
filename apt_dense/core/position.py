"""The absolute position table at other grids."""
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

RESAMPLINGS = ('bicubic', 'bicubic_antialias', 'tiled')


def resample_table(table: Tensor, height: int, width: int, antialias: bool = False) -> Tensor:
    """Position table (h, w, C) -> (height, width, C), bicubic, align_corners False; the table's dtype.

    Written as a product with one matrix for each axis, which ``F.interpolate`` gives once for each pair of sides: the
    same numbers to rounding, a backward pass that is a product too and deterministic on a GPU, and less time (on a CPU,
    interpolating a table of 14 x 14 and its gradient took 5 % of a training step of two blocks).
    """
    if (height, width) == table.shape[:2]:
        return table
    dtype = torch.promote_types(table.dtype, torch.float32)
    rows = resampling_matrix(table.shape[0], height, antialias, dtype, table.device)
    cols = resampling_matrix(table.shape[1], width, antialias, dtype, table.device)
    with torch.autocast(table.device.type, enabled=False):
        tall = (rows @ table.to(dtype).flatten(1)).unflatten(1, (table.shape[1], -1))  # (height, w, C)
        return (cols @ tall).to(table.dtype)


def table_at(cells: Tensor, height: int, width: int, resampling: str) -> Tensor:
    """Positions of a square of cells (h * h, C), row by row -> (height, width, C), by one of ``RESAMPLINGS``."""
    side = round(len(cells)**0.5)
    table = cells.unflatten(0, (side, side))
    if resampling == 'tiled':
        return tile_table(table, height, width)
    return resample_table(table, height, width, antialias=resampling == 'bicubic_antialias')


def tile_table(table: Tensor, height: int, width: int) -> Tensor:
    """Position table (h, w, C) -> (height, width, C), repeated from the top left, as SAM 3 does."""
    rows, cols = -(-height // table.shape[0]), -(-width // table.shape[1])
    return table.repeat(rows, cols, 1)[:height, :width]


def sample_table(table: Tensor, cells: int, anchor: str) -> Tensor:
    """Position table (H, W, C) -> (H / cells, W / cells, C), at the corners or the centres of the patches.

    Args:
        cells: side of a patch, even.
        anchor: 'corner', the top-left cell, or 'center', the mean of the four cells around the centre.
    """
    if anchor == 'corner':
        return table[::cells, ::cells]
    before, after = cells // 2 - 1, cells // 2
    rows = (table[before::cells] + table[after::cells]) / 2
    return (rows[:, before::cells] + rows[:, after::cells]) / 2


@functools.lru_cache(maxsize=256)
def resampling_matrix(old: int, new: int, antialias: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The (new, old) matrix of bicubic resampling along one axis."""
    with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not be used in training later
        unit = torch.eye(old, dtype=torch.float64, device='cpu')[None, None]  # its other axis keeps its size
        matrix = F.interpolate(unit, size=(new, old), mode='bicubic', align_corners=False, antialias=antialias)
        return matrix[0, 0].to(device=device, dtype=dtype)


def resample_positions(table: Tensor, side: int, prefix: int = 1) -> Tensor:
    """Position table (1, P + n * n, C) -> (1, P + side * side, C); the prefix's P entries, the first, stay.

    Bicubic without antialias, as EVA's own script.

    Raises:
        ValueError: if the table is not of a square grid and a prefix.
    """
    old = table_side(table, prefix)
    grid = table[:, prefix:].float().unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode='bicubic', align_corners=False)
    grid = grid.flatten(2).transpose(1, 2).to(table.dtype)
    return torch.cat([table[:, :prefix], grid], 1)


def positions_fit(stored: torch.Size, own: torch.Size, prefix: int = 1) -> bool:
    """True if a stored position table is the model's once it is resampled: (1, P + n * n, C) with the same C."""
    return len(stored) == 3 and stored[::2] == own[::2] and (
        stored[1] > prefix and stored[1] == prefix + round((stored[1] - prefix)**0.5)**2)


def table_side(table: Tensor, prefix: int = 1) -> int:
    """Side of a square position table (1, P + side**2, C)."""
    side = round((table.shape[1] - prefix)**0.5)
    if side**2 + prefix != table.shape[1]:
        raise ValueError(f'pos_embed has {table.shape[1]} entries, wanted a square number and {prefix} for the prefix')
    return side
