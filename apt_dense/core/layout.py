"""Which token covers which cell, and the tokens' order: the only place with index arithmetic.

A cell is one base patch.  A token is a square of 2**s x 2**s cells (area 4**s), aligned to multiples of its side.  A
root is the largest token possible.  A window is ``window_size`` cells a side, a multiple of the root.

Tokens, and cells, are ordered by image, then window (raster), then root inside the window (raster), then Z-order inside
the root.  Three properties follow, and everything else rests on them:

* Each window and each image is one contiguous run of tokens, so window and global attention work on one buffer.
* The order of the cells is one reshape and permute: no sort, no gather.
* The cells of a token are consecutive, and start at a multiple of its area.
"""
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from apt_dense.core.order import check_grid, order_cells, restore_cells
from apt_dense.core.runs import Runs


@dataclass(frozen=True)
class TokenLayout:
    """The packed tokens of a batch; T tokens over B images of height x width cells.

    Attributes:
        batch_size, height, width: B and the grid of cells.
        window_size: cells a side of a window; the whole image is one window if 0.
        num_scales: S; a root is 2**(S - 1) cells a side.
        num_prefix: rows before the patches of each image, its class token and registers: rows of area 0 and scale -1.
        windows, images: the runs.  Where an image is one window, ``windows is images``.  Otherwise its prefix rows are
            a run of their own among the windows, before those of its patches.
        scale_counts: tokens of each scale, S numbers on the host, prefix rows not counted.
        scales: (T,) int64, s of each token.
        starts: (T,) int64, the first cell of each token in the order of the cells over the batch.
    """
    batch_size: int
    height: int
    width: int
    window_size: int
    num_scales: int
    num_prefix: int
    windows: Runs
    images: Runs
    scale_counts: tuple[int, ...]
    scales: Tensor
    starts: Tensor

    @classmethod
    @torch.no_grad()
    def from_scales(cls, scales: Tensor, window_size: int = 0, num_scales: int | None = None,
                    num_prefix: int = 0, check: bool = True) -> 'TokenLayout':
        """Build the layout of a scale map.  Waits for the device once, for the number of tokens.

        Args:
            scales: (B, H, W) integer, the scale of the patch over each cell (``quadtree.select_scales``).
            window_size: cells a side of a window, 0 for attention over the whole image.
            num_scales: S, which sets the root; by default that of the largest in the map (one more
                wait).
            num_prefix: put so many rows before each image's tokens.
            check: False if the map is one of ``select_scales``: whether all patches are whole is then left unchecked.

        Raises:
            ValueError: if the grid is no multiple of the window, the window none of the root, a scale is out of range
                or a patch is not whole.
        """
        if scales.ndim != 3 or scales.is_floating_point() or 0 in scales.shape:
            raise ValueError(f'scales is {scales.dtype} of shape {tuple(scales.shape)}, wanted integers (B, H, W)')
        batch_size, height, width = scales.shape
        if num_scales is None:
            num_scales = max(int(scales.max()), 0) + 1
        check_grid(height, width, window_size, num_scales)
        ordered = order_cells(scales.long(), window_size, num_scales)
        index = torch.arange(ordered.numel(), device=scales.device)
        areas = 1 << 2 * ordered
        first = index & (areas - 1) == 0  # a token begins at a multiple of its area
        # A cell lies in the token of its aligned block, which must begin with the same scale.
        same = (ordered[index & -areas] == ordered).all() if check else None
        counts, scale_counts = cls._count(ordered, first, same, window_size**2 or height * width, num_scales)
        num_tokens = sum(counts)
        # The k-th first cell is where their number reaches k; nonzero() would wait for the device.
        starts = torch.searchsorted(first.cumsum(0), index[:num_tokens], right=True)
        token_scales = ordered[starts]
        per_image = len(counts) // batch_size
        image_lengths = tuple(sum(counts[i:i + per_image]) for i in range(0, len(counts), per_image))
        windows = images = Runs.from_lengths(image_lengths, scales.device, height * width)
        if per_image > 1:
            windows = Runs.from_lengths(tuple(counts), scales.device, window_size**2)
        layout = cls(batch_size, height, width, window_size, num_scales, 0, windows, images, scale_counts,
                     token_scales, starts)
        return layout._with_prefix(int(num_prefix)) if num_prefix else layout

    @classmethod
    def dense(cls, batch_size: int, height: int, width: int, window_size: int = 0, num_scales: int = 1,
              num_prefix: int = 0, device: torch.device | str = 'cpu') -> 'TokenLayout':
        """Build the layout in which every cell is a token.  Does not wait for the device.

        Raises:
            ValueError: as ``from_scales``.
        """
        check_grid(height, width, window_size, num_scales)
        device = torch.device(device)
        images = windows = Runs.from_lengths((height * width,) * batch_size, device, height * width)
        area = window_size**2 or height * width
        if area != height * width:
            windows = Runs.from_lengths((area,) * (batch_size * height * width // area), device, area)
        starts = torch.arange(batch_size * height * width, device=device)
        layout = cls(batch_size, height, width, window_size, num_scales, 0, windows, images,
                     (starts.numel(),) + (0,) * (num_scales - 1), torch.zeros_like(starts), starts)
        return layout._with_prefix(int(num_prefix)) if num_prefix else layout

    @staticmethod
    def _count(ordered: Tensor, first: Tensor, same: Tensor | None, window_cells: int,
               num_scales: int) -> tuple[list[int], tuple[int, ...]]:
        """Tokens in each window, in order, and of each scale.

        The one place that waits for the device; it validates the map on the way.

        Args:
            ordered: (N,) scales of the cells in the tokens' order.
            first: (N,) bool, True where a token begins.
            same: whether every block begins with the scale of its cells; None if that is known.
        """
        per_scale = (ordered == torch.arange(num_scales, device=ordered.device)[:, None]).sum(1)
        counts = first.view(-1, window_cells).sum(1)
        known = first.new_ones(1) if same is None else same[None]
        host = torch.cat([known.long(), per_scale, counts]).tolist()
        same, cells, counts = host[0], host[1:1 + num_scales], host[1 + num_scales:]
        if sum(cells) != ordered.numel():
            raise ValueError(f'the scale map holds a scale outside 0..{num_scales - 1}')
        # A block that is not whole begins as one that is, so there are too few cells for as many tokens.
        tokens = [count / (1 << 2 * scale) for scale, count in enumerate(cells)]
        if not same or sum(tokens) != sum(counts):
            raise ValueError('the scale map holds an incomplete patch: all cells of a patch of scale s must say s, and '
                             'it must be aligned to multiples of 2**s cells')
        return counts, tuple(int(count) for count in tokens)

    def _with_prefix(self, num_prefix: int) -> 'TokenLayout':
        """The same layout with rows before each image's tokens."""
        lengths, device = self.images.lengths, self.starts.device

        def insert(values: Tensor, value: int) -> Tensor:
            rows = values.new_full((num_prefix,), value)
            return torch.cat([part for image in values.split(lengths) for part in (rows, image)])

        images = windows = Runs.from_lengths(tuple(length + num_prefix for length in lengths), device,
                                             self.height * self.width + num_prefix)
        if self.windows is not self.images:
            windows = self._runs_of_windows(num_prefix, self.windows.lengths)
        return replace(self, num_prefix=num_prefix, windows=windows, images=images, scales=insert(self.scales, -1),
                       starts=insert(self.starts, 0))

    def _runs_of_windows(self, num_prefix: int, lengths: Sequence[int]) -> Runs:
        """The runs of the windows' patches, with a run of prefix rows before those of each image."""
        per_image = len(lengths) // self.batch_size
        runs = [run for begin in range(0, len(lengths), per_image)
                for run in (*[num_prefix] * (num_prefix > 0), *lengths[begin:begin + per_image])]
        return Runs.from_lengths(tuple(runs), self.starts.device, self.window_size**2)

    @property
    def without_prefix(self) -> 'TokenLayout':
        """The same layout of patches only."""
        if not self.num_prefix:
            return self
        lengths, device = self.images.lengths, self.starts.device
        images = windows = Runs.from_lengths(tuple(length - self.num_prefix for length in lengths), device,
                                             self.height * self.width)
        if self.windows is not self.images:
            runs = self.windows.lengths
            per_image = len(runs) // self.batch_size
            windows = self._runs_of_windows(0, [run for index, run in enumerate(runs) if index % per_image])
        scales, starts = (torch.cat([image[self.num_prefix:] for image in values.split(lengths)])
                          for values in (self.scales, self.starts))
        return replace(self, num_prefix=0, windows=windows, images=images, scales=scales, starts=starts)

    @property
    def num_tokens(self) -> int:
        """T, prefix rows included."""
        return sum(self.images.lengths)

    @property
    def num_cells(self) -> int:
        """Cells of the batch: the tokens, less prefix rows, that the dense model would process."""
        return self.batch_size * self.height * self.width

    @property
    def is_dense(self) -> bool:
        """True if every cell is a token of its own."""
        return self.num_tokens - self.num_prefix * self.batch_size == self.num_cells

    @cached_property
    def areas(self) -> Tensor:
        """(T,) int64: cells that each token covers; 0 for a prefix row."""
        return (1 << 2 * self.scales.clamp(min=0)).where(self.scales >= 0, 0)

    @cached_property
    def tokens_by_scale(self) -> tuple[Tensor, ...]:
        """S tensors (T_s,) int64: the rows of the tokens of each scale, ascending; prefix rows are in none."""
        return self._by_scale.split((self.num_prefix * self.batch_size, *self.scale_counts))[1:]

    @cached_property
    def _by_scale(self) -> Tensor:
        """(T,) int64: all rows, prefix rows first, then by scale."""
        return self.scales.argsort(stable=True)

    @cached_property
    def coarse_tokens(self) -> Tensor:
        """(T - T_0,) int64: the rows of the merged patches, by scale, fine to coarse."""
        return self._by_scale[self.num_prefix * self.batch_size + self.scale_counts[0]:]

    @cached_property
    def coarse_blocks(self) -> tuple[Tensor, ...]:
        """S - 1 tensors (T_s,) int64: of the tokens of each scale s > 0, which block of 2**s x 2**s cells each is.

        Blocks are counted in the tokens' order, over the batch: the rows of ``order(..., s)``.
        """
        starts = self.starts[self.coarse_tokens].split(self.scale_counts[1:])
        return tuple(start >> 2 * scale for scale, start in enumerate(starts, start=1))

    @cached_property
    def position_index(self) -> Tensor:
        """(T,) int64: each token's row in the patches of one image, all scales in turn, fine to coarse.

        Scale s has H * W / 4**s patches, in the tokens' order.  A prefix row has -1.
        """
        cells = self.height * self.width
        if self.num_scales == 1:
            return self.starts % cells + self.scales if self.num_prefix else self.starts % cells
        shifts = 2 * self.scales.clamp(min=0)
        begins = (4 * cells - (4 * cells >> shifts)) // 3  # cells + cells / 4 + ... of the finer scales
        index = begins + (self.starts % cells >> shifts)
        return index + self.scales.clamp(max=0) if self.num_prefix else index

    @cached_property
    def cell_yx(self) -> tuple[Tensor, Tensor]:
        """Two (T,) int64: row and column, in the image's grid, of each token's top-left cell."""
        device = self.starts.device
        rows, cols = torch.arange(self.height, device=device), torch.arange(self.width, device=device)
        shape = (self.batch_size, self.height, self.width)
        y = order_cells(rows[:, None].expand(shape), self.window_size, self.num_scales)
        x = order_cells(cols.expand(shape), self.window_size, self.num_scales)
        return y[self.starts], x[self.starts]

    def covers_content(self, content_cells: Sequence[tuple[int, int]]) -> Tensor:
        """Which tokens are no mere padding: (T,) bool, False for prefix rows.

        Args:
            content_cells: of each image, how many rows and columns of cells, at the top left, hold a pixel of it; what
                is below and to the right is padding.  A token that covers content and padding is content.

        Raises:
            ValueError: if there is not one pair for each image, or one is outside the grid.
        """
        if len(content_cells) != self.batch_size or not all(
                0 < rows <= self.height and 0 < cols <= self.width for rows, cols in content_cells):
            raise ValueError(f'content_cells={list(content_cells)}: wanted {self.batch_size} pairs of rows and columns '
                             f'within the grid {self.height}x{self.width}')
        limits = self.images.spread(torch.tensor(content_cells, device=self.starts.device))
        y, x = self.cell_yx
        return (y < limits[:, 0]) & (x < limits[:, 1]) & (self.scales >= 0)

    def order(self, cells: Tensor, scale: int = 0) -> Tensor:
        """(B, H / 2**s, W / 2**s, ...) -> (B * H * W / 4**s, ...) in the tokens' order; copies.

        Row ``starts[t] >> 2 * s`` of the result belongs to token t, if its scale is s.
        """
        return order_cells(cells, self.window_size >> scale, self.num_scales - scale)

    def pack(self, cells: Tensor) -> Tensor:
        """(B, C, H, W) -> (T, C): the value at each token's top-left cell; a prefix row is zero."""
        rows = self.order(cells.permute(0, 2, 3, 1))[self.starts]
        return rows * (self.scales >= 0)[:, None] if self.num_prefix else rows

    def expand(self, tokens: Tensor) -> Tensor:
        """(T, C) -> (B, C, H, W): each token's value over all the cells that it covers; prefix rows are dropped."""
        if self.num_tokens != self.num_cells or self.num_prefix:
            tokens = tokens.repeat_interleave(self.areas, 0, output_size=self.num_cells)
        cells = restore_cells(tokens, self.batch_size, self.height, self.width, self.window_size, self.num_scales)
        return cells.permute(0, 3, 1, 2)
