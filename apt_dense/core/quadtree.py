"""From patch scores to a patch size for every cell."""
from collections.abc import Sequence

import torch
from torch import Tensor


def select_scales(scores: Sequence[Tensor], thresholds: Sequence[float]) -> Tensor:
    """Choose the coarsest patch whose score is strictly below its scale's threshold.

    Args:
        scores: S maps (B, ceil(H / 2**s), ceil(W / 2**s)), fine to coarse, over the same image.  Of the finest one only
            the shape (B, H, W), the grid of cells, is used: base patches are what no coarser patch covers.
        thresholds: S - 1 numbers, fine to coarse, for the scales 1 to S - 1.

    Returns:
        (B, H, W) int64: over each cell, the scale s of the patch that covers it (2**s cells a side, aligned to
        multiples of its side).

    Raises:
        ValueError: if there are not S - 1 thresholds, or the maps' shapes do not belong together.

    Source: APT, section 3.1.  A score at or above the threshold splits, so thresholds of -1 reduce nothing.
    """
    check_thresholds(thresholds, len(scores))
    batch, height, width = scores[0].shape
    scales = torch.zeros((batch, height, width), dtype=torch.int64, device=scores[0].device)
    for scale, (score, threshold) in enumerate(zip(scores[1:], thresholds, strict=True), start=1):
        side = 2**scale
        wanted = (batch, -(-height // side), -(-width // side))
        if tuple(score.shape) != wanted:
            raise ValueError(f'scores[{scale}] has shape {tuple(score.shape)}, wanted {wanted}: half of the grid '
                             f'{height}x{width} at each scale, rounded up')
        merged = (score < threshold).repeat_interleave(side, 1).repeat_interleave(side, 2)
        scales.masked_fill_(merged[:, :height, :width], scale)  # coarser scales come later and win
    return scales


def check_thresholds(thresholds: Sequence[float], num_scales: int) -> None:
    """Raise ValueError unless there are ``num_scales - 1`` thresholds, none of them NaN."""
    if len(thresholds) != num_scales - 1:
        raise ValueError(f'got {len(thresholds)} thresholds {tuple(thresholds)} for {num_scales} scales: give '
                         f'{num_scales - 1}, fine to coarse, one for each scale above the base patch')
    if any(threshold != threshold for threshold in thresholds):
        raise ValueError(f'thresholds {tuple(thresholds)} contain a NaN')
