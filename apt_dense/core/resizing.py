"""Scores that ask what a patch loses when it is resized to a base patch.

As those of ``importance``: (B, 3, H, W), RGB in 0..255, in, and ``num_scales`` float32 maps, fine to coarse, out.  They
look at the grey image, as entropy does: one channel costs a third.

A merged patch of 32 px is resized by 1/2 to a base patch of 16 px, one of 64 px by 1/4, one of 128 px by 1/8.
"""
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_dense.core.importance import checked_image, factor_of_side, luma, reduce_patches, upsampling_error

RESIZING_FACTORS = {32: 1 / 2, 64: 1 / 4, 128: 1 / 8}  # side of a patch in pixels -> what it is resized by
BLOCK_PX = 8  # of the blocks whose maximum is taken: the side of the smallest things that matter


def patch_resizing_error(image: Tensor, patch_size: int = 16, num_scales: int = 4, reduction: str = 'mean',
                         factors: Mapping[int, float] = RESIZING_FACTORS, *, check: bool = True) -> list[Tensor]:
    """Squared error of the 0..1 grey image after down- and upsampling, over each patch.

    Args:
        image: (B, 3, H, W), RGB in 0..255.
        patch_size: side of the finest patch in pixels.
        num_scales: number of maps; patch sides double from one to the next.
        reduction: 'mean' over the patch, or 'max': the largest of the means over blocks of 8 px (or of
            the largest divisor of ``patch_size`` below).  So a small thing on a plain ground counts as much in a large
            patch as in a small one.
        factors: side of a patch in pixels -> its downsampling factor, see ``patch_upsampling_error``.
        check: see ``importance``.

    Returns:
        ``num_scales`` maps, fine to coarse.  The error outside the image counts as zero.

    Raises:
        ValueError: for a bad image or an unknown reduction.
    """
    if reduction not in ('mean', 'max'):
        raise ValueError(f"reduction={reduction!r} is not one of 'mean', 'max'")
    grey = luma(checked_image(image, check))[:, None] / 255
    maps, blocks = [], {}
    block_px = block_side(patch_size) if reduction == 'max' else patch_size
    for scale in range(num_scales):
        side_px = patch_size << scale
        factor = factor_of_side(factors, side_px)
        if factor not in blocks:
            blocks[factor] = reduce_patches(upsampling_error(grey, factor), block_px, 'mean')[:, None]
        maps.append(reduce_patches(blocks[factor], side_px // block_px, reduction))
    return maps


def block_side(patch_size: int) -> int:
    """Of the blocks of a maximum, in pixels: 8, or the largest divisor of the finest patch's side below."""
    return max(side for side in range(1, BLOCK_PX + 1) if patch_size % side == 0)


def patch_rate_distortion(image: Tensor, patch_size: int = 16, num_scales: int = 4, power: float = 1.0, *,
                          check: bool = True) -> list[Tensor]:
    """The price of a token at which a patch is as cheap whole as cut in the best way.

    With one threshold for all scales, the price, the patches that are chosen make ``distortion + price * tokens`` of
    the image as small as any quadtree can.  The distortion of a patch is the sum, over its cells, of
    ``resizing error ** power``; the smallest patches, half as large as the finest that are scored, lose nothing.

    Args:
        image, patch_size, num_scales, check: see ``patch_resizing_error``.
        power: 1, or more to care for a cell that loses much rather than for many that lose little.

    Returns:
        ``num_scales`` maps, fine to coarse.

    Raises:
        ValueError: for a bad image or an odd ``patch_size``.

    Source: cost-complexity pruning (Breiman et al. 1984); Chou, Lookabaugh and Gray, IEEE Trans. Information Theory 35
    (1989): the best trees of all prices are nested, so that each patch has one price from which on it is whole.
    """
    if patch_size % 2:
        raise ValueError(f'patch_size={patch_size} cannot be halved')
    grey = luma(checked_image(image, check))[:, None] / 255
    cell_px = patch_size // 2
    distortions = []
    for scale in range(num_scales):
        side_px = patch_size << scale
        error = reduce_patches(upsampling_error(grey, factor_of_side(RESIZING_FACTORS, side_px)), cell_px, 'mean')
        cells = F.pad(error[:, None]**power, (0, -error.shape[2] % (2 << scale), 0, -error.shape[1] % (2 << scale)))
        distortions.append(F.avg_pool2d(cells, 2 << scale)[:, 0].double() * (2 << scale)**2)
    return [price.float() for price in break_even_prices(distortions)]


def break_even_prices(distortions: Sequence[Tensor]) -> list[Tensor]:
    """Distortions of patches -> the price of a token at which each is as cheap whole as cut in the best way.

    Args:
        distortions: S maps (B, ceil(H / 2**s), ceil(W / 2**s)), fine to coarse, of patches of 2, 4, ... cells a side;
            single cells have no distortion.

    Returns:
        S maps of the same shapes.
    """
    return [_break_even(distortions[:scale + 1]) for scale in range(len(distortions))]


def _break_even(distortions: Sequence[Tensor]) -> Tensor:
    """The prices of the last map.

    The cost of the best cut is a concave, piecewise linear function of the price, which grows faster than that of the
    whole patch.  Newton's method from 0 goes from one of its bends to a later one, so it ends at the exact price.
    """
    whole = distortions[-1]
    price = torch.zeros_like(whole)
    bends = sum(4**depth for depth in range(1, len(distortions)))  # smaller patches inside: each merges at one price
    for _ in range(bends + 1):
        cost, count = _best_cut(distortions[:-1], price)
        price = price + ((whole + price - cost) / (count - 1)).clamp(min=0)
    return price


def _best_cut(distortions: Sequence[Tensor], price: Tensor) -> tuple[Tensor, Tensor]:
    """The least cost of patches that are cut, (B, h, w), and into how many patches.

    Args:
        distortions: S maps of the patches inside, fine to coarse.
        price: (B, h, w), of a token in each patch.
    """
    cost = 4 * _fine(price, len(distortions))  # of the cells of a finest patch
    count = torch.full_like(cost, 4)
    for level, distortion in enumerate(distortions):
        (rows, cols), (height, width) = distortion.shape[1:], cost.shape[1:]
        whole = F.pad(distortion, (0, width - cols, 0, height - rows)) + _fine(price, len(distortions) - level)
        merged = whole <= cost
        cost, count = whole.where(merged, cost), count.masked_fill(merged, 1)
        cost, count = (4 * F.avg_pool2d(value[:, None], 2)[:, 0] for value in (cost, count))
    return cost, count


def _fine(values: Tensor, levels: int) -> Tensor:
    """(B, h, w) -> (B, h * 2**levels, w * 2**levels), repeated."""
    return values.repeat_interleave(1 << levels, 1).repeat_interleave(1 << levels, 2)
