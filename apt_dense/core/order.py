"""The order of the cells: one permutation and its inverse; and the grids that have one.

Cells, and with them tokens, are ordered by image, then window (raster), then root inside the window (raster), then
Z-order inside the root.  With S = 3 (a root is 4 cells a side) and windows of 8 cells that is, for nH x nW windows::

    (B, H, W, C) = (B, nH * 8, nW * 8, C)
      reshape   -> (B, nH, 2, 2, 2, nW, 2, 2, 2, C)      window, root, two halvings: of the rows, then of the columns
      permute   -> (B, nH, nW, 2, 2, 2, 2, 2, 2, C)      each level's row beside its column
      reshape   -> (B * H * W, C)

No sort, no gather.  ``restore_cells`` is the same backwards.
"""
from torch import Tensor


def check_grid(height: int, width: int, window_size: int, num_scales: int,
               patch_size: int | None = None) -> None:
    """Raise ValueError unless the grid (cells) is whole windows and a window is whole roots; window 0 is the image.

    Args:
        patch_size: side of a cell in pixels, for the message; None if it is not known.
    """
    root = 2**(num_scales - 1)
    if window_size % root:
        raise ValueError(f'window_size={window_size} is not a multiple of the largest patch, {root} cells a side with '
                         f'num_scales={num_scales}: use fewer scales or a window of {-(-window_size // root) * root}')
    multiple = window_size or root
    if height % multiple or width % multiple:
        what = f'window_size={window_size}' if window_size else f'the largest patch, {root} cells a side'
        fitting = tuple(-(-side // multiple) * multiple for side in (height, width))
        remedy = f'pad the image to {fitting[0]}x{fitting[1]} cells' if patch_size is None else (
            padding_remedy(height * patch_size, width * patch_size, multiple * patch_size))
        raise ValueError(f'grid {height}x{width} is not a multiple of {what}: {remedy}')


def padding_remedy(height_px: int, width_px: int, multiple_px: int) -> str:
    """What to do about an image whose sides are not multiples of something, for error messages."""
    height_px, width_px = (-(-side // multiple_px) * multiple_px for side in (height_px, width_px))
    return (f'pad the image to {height_px}x{width_px} px, at the bottom and right, as PatchChooser.pad does (and set '
            'img_size to such a size); in a config of mmdetection by '
            f'data_preprocessor.pad_size_divisor={multiple_px}, '
            'of mmsegmentation by data_preprocessor.size and the crops')


def order_cells(cells: Tensor, window_size: int, num_scales: int) -> Tensor:
    """(B, H, W, ...) -> (B * H * W, ...): cells in the tokens' order (see the module docstring).

    ``window_size`` and ``num_scales`` count in the same cells; the sides must pass ``check_grid``.
    """
    batch, height, width = cells.shape[:3]
    rows, cols = _factors(height, window_size, num_scales), _factors(width, window_size, num_scales)
    rest = cells.shape[3:]
    split = cells.reshape(batch, *rows, *cols, *rest)
    return split.permute(*_interleaved(len(rows), len(rest))).reshape(-1, *rest)


def restore_cells(ordered: Tensor, batch: int, height: int, width: int, window_size: int, num_scales: int) -> Tensor:
    """(B * H * W, C) -> (B, H, W, C): the inverse of ``order_cells``."""
    rows, cols = _factors(height, window_size, num_scales), _factors(width, window_size, num_scales)
    alternating = [side for pair in zip(rows, cols, strict=True) for side in pair]
    split = ordered.reshape(batch, *alternating, ordered.shape[-1])
    order = _interleaved(len(rows), 1)
    inverse = [order.index(axis) for axis in range(len(order))]
    return split.permute(*inverse).reshape(batch, height, width, ordered.shape[-1])


def _factors(side: int, window_size: int, num_scales: int) -> list[int]:
    """Split a side: windows, roots in a window, then one factor of 2 for each scale above the base."""
    window = window_size or side
    return [side // window, window >> (num_scales - 1), *[2] * (num_scales - 1)]


def _interleaved(levels: int, num_rest: int) -> list[int]:
    """Permutation (batch, rows..., cols..., rest...) -> (batch, row, col, row, col, ..., rest...)."""
    pairs = [axis for level in range(1, levels + 1) for axis in (level, level + levels)]
    return [0, *pairs, *range(2 * levels + 1, 2 * levels + 1 + num_rest)]
