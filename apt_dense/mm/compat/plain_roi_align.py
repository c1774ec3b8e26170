"""RoIAlign without compiled operators, for CPUs.

A pooled value is the mean over a grid of bilinear samples.  Both the mean and the weights of a sample separate into
rows and columns, so a box is pooled by two small matrix products: (bins, cells) for the rows times the box's cells
times (cells, bins) for the columns.  The cells are a strided view of the map, whose channels come last in memory:
nothing is gathered, and the gradient is added into such a view.
"""
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def roi_align(maps: Tensor, rois: Tensor, output_size: tuple[int, int], spatial_scale: float = 1.0,
              sampling_ratio: int = 0, aligned: bool = True) -> Tensor:
    """Pool the inside of each box into bins of one number, by the mean over samples, as mmcv's RoIAlign does.

    Args:
        maps: (N, C, H, W), on a CPU.  Channels last in memory are used as they are, other orders are copied once.
        rois: (K, 5), the image's index, then x1, y1, x2, y2 in pixels.
        output_size: rows and columns of bins.
        spatial_scale: cells of the map a pixel.
        sampling_ratio: samples a bin and axis; 0 for one a cell, rounded up.
        aligned: False for boxes that are not shifted by half a cell, and are at least one cell large.

    Returns:
        (K, C, rows, columns) of the maps' type; computed in float32 if that is a half precision.

    Raises:
        RuntimeError: for a box with a negative side (where ``aligned``) or a coordinate that is not finite.
        IndexError: for a box of an image that is not there.

    Source: Mask R-CNN (arXiv 1703.06870); ``aligned`` as in detectron2.
    """
    if maps.dtype in (torch.float16, torch.bfloat16):
        return roi_align(maps.float(), rois.float(), output_size, spatial_scale, sampling_ratio,
                         aligned).to(maps.dtype)
    return _RoIAlign.apply(maps, rois.to(maps.dtype), tuple(output_size), spatial_scale, sampling_ratio, aligned)


class _RoIAlign(torch.autograd.Function):
    """See ``roi_align``; the gradient's channels come last in memory."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, rois: Tensor, output_size: tuple[int, int], spatial_scale: float,
                sampling_ratio: int, aligned: bool) -> Tensor:
        ctx.shape, ctx.boxes = maps.shape, []
        pooled = maps.new_zeros(len(rois), *output_size, maps.shape[1])
        if pooled.numel() and maps.numel():
            ctx.boxes = _boxes(rois.detach(), maps.shape, output_size, spatial_scale, sampling_ratio, aligned)
            cells = _as_rows(channels_last(maps.detach()))
            pool = _pool_one if maps.shape[1] == 1 else _pool
            for (place, by_row, by_col), box in zip(ctx.boxes, pooled.numpy(), strict=True):
                pool(by_row, by_col, cells[place], box)
        return pooled.permute(0, 3, 1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        images, channels, height, width = ctx.shape
        total = gradient.new_zeros(images, height, width, channels).permute(0, 3, 1, 2)
        cells = _as_rows(total)
        bins = channels_last(gradient).permute(0, 2, 3, 1).numpy() if ctx.boxes else ()
        for (place, by_row, by_col), box in zip(ctx.boxes, bins, strict=True):
            lines = np.matmul(by_col.T, box)  # (rows, cells wide, channels)
            cells[place] += np.dot(by_row.T, lines.reshape(len(by_row), -1))
        return total, None, None, None, None, None


def _pool(by_row: np.ndarray, by_col: np.ndarray, cells: np.ndarray, box: np.ndarray) -> None:
    """(rows, h), (cols, w) and the cells (h, w * channels) -> box (rows, cols, channels)."""
    lines = np.dot(by_row, cells)
    np.matmul(by_col, lines.reshape(len(by_row), by_col.shape[1], -1), out=box)


def _pool_one(by_row: np.ndarray, by_col: np.ndarray, cells: np.ndarray, box: np.ndarray) -> None:
    """``_pool`` for one channel."""
    np.dot(np.dot(by_row, cells), by_col.T, out=box[..., 0])


def _as_rows(maps: Tensor) -> np.ndarray:
    """(N, C, H, W) with the channels last in memory -> the same memory as (N * H, W * C)."""
    images, channels, height, width = maps.shape
    return maps.permute(0, 2, 3, 1).view(images * height, width * channels).numpy()


def channels_last(maps: Tensor) -> Tensor:
    """(N, C, H, W) with the channels last in memory: itself, or a copy."""
    if maps.permute(0, 2, 3, 1).is_contiguous():
        return maps
    images, channels, height, width = maps.shape
    copy = maps.new_empty(images, height * width, channels)
    for target, source in zip(copy, maps, strict=True):  # torch transposes in blocks where there are two axes only
        target.copy_(source.reshape(channels, -1).t())
    return copy.view(images, height, width, channels).permute(0, 3, 1, 2)


def _boxes(rois: Tensor, shape: torch.Size, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int,
           aligned: bool) -> list[tuple]:
    """For each box: its cells' place in the rows of ``_as_rows``, and the two matrices (bins, cells)."""
    images, channels, height, width = shape
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    sides = corners[:, 2:] - corners[:, :2]
    proper = torch.isfinite(corners).all(1) & (sides >= 0).all(1) if aligned else torch.isfinite(corners).all(1)
    if not bool(proper.all()):
        raise RuntimeError('RoIAlign wants finite boxes (image, x1, y1, x2, y2) with x1 <= x2 and y1 <= y2, got '
                           f'{rois[~proper][0].tolist()}')
    image = rois[:, 0].long()
    if not bool(((image >= 0) & (image < images)).all()):
        raise IndexError(f'RoIAlign got boxes of the images {sorted(set(image.tolist()))}, and maps of {images}')
    if not aligned:
        sides = sides.clamp(min=1)
    top, high, by_row = _axis(corners[:, 1], sides[:, 1], output_size[0], sampling_ratio, height)
    left, wide, by_col = _axis(corners[:, 0], sides[:, 0], output_size[1], sampling_ratio, width)
    numbers = (image * height + top, high, left * channels, wide)
    return [((slice(y, y + h), slice(x, x + w * channels)), row[:, :h], col[:, :w])
            for y, h, x, w, row, col in zip(*(part.tolist() for part in numbers), by_row, by_col, strict=True)]


def _axis(low_edge: Tensor, side: Tensor, bins: int, sampling_ratio: int, length: int) -> tuple:
    """The first cell of each box (K,), how many there are (K,), and their weights in its bins (K, bins, most cells)."""
    bin_side = (side / bins)[:, None, None]
    samples = torch.full_like(bin_side, sampling_ratio) if sampling_ratio > 0 else bin_side.ceil()
    number = torch.arange(max(int(samples.max()), 1), dtype=side.dtype)
    index = torch.arange(bins, dtype=side.dtype)[:, None]
    at = low_edge[:, None, None] + index * bin_side + (number + 0.5) * bin_side / samples  # (K, bins, samples)
    counts = (number < samples) & (at >= -1) & (at <= length)  # from a cell outside the map on, samples are 0
    at = torch.where(counts, at, at[:, :1, :1]).nan_to_num_(0).clamp_(0, length - 1)
    cell = at.floor().clamp_(max=max(length - 2, 0))
    upper = at - cell
    first = cell.amin((1, 2)).long()
    cells = cell.amax((1, 2)).long() + 2 - first
    weight = counts / samples.clamp(min=1)
    slot = cell.long() - first[:, None, None]
    matrix = weight.new_zeros(len(side), bins, int(cells.max()))
    matrix.scatter_add_(2, slot, weight - weight * upper).scatter_add_(2, slot + 1, weight * upper)
    return first, cells.clamp(max=length), matrix.numpy()
