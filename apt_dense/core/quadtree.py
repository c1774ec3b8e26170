"""From patch scores to a patch size for every cell."""
from collections.abc import Iterable, Sequence
from numbers import Real

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


def fit_budgets(scores: Sequence[Tensor], thresholds: Sequence[float], budgets: Sequence[int]) -> Tensor:
    """Choose patches as ``select_scales``, and merge more of them in images that have too many tokens.

    All thresholds of such an image are raised by one amount, the least (to 1 / 2**40 of the range) with which the
    budget holds.  The others are left alone.  The same input gives the same patches, whatever its batch neighbours.

    Args:
        scores, thresholds: see ``select_scales``.
        budgets: the most tokens of each of the B images.

    Returns:
        (B, H, W) int64, as ``select_scales``.

    Raises:
        ValueError: as ``select_scales``, or if an image would need more tokens even if every patch were of the largest
            size.
    """
    least = scores[-1].shape[1] * scores[-1].shape[2]
    if min(budgets) < least:
        raise ValueError(f'a budget of {min(budgets)} tokens is less than the {least} patches of the largest size that '
                         'cover an image: raise max_tokens, or use more scales')
    coarse = [score.double() for score in scores[1:]]
    # As they are compared in select_scales, in the scores' precision.
    thresholds = [torch.tensor(threshold, dtype=scores[1].dtype).item() for threshold in thresholds]

    def merge(raised: Tensor) -> tuple[Tensor, Tensor]:
        """Scale maps with thresholds raised by (B,), and which of them fit."""
        scales = select_scales([scores[0], *(score - raised[:, None, None] for score in coarse)], thresholds)
        return scales, count_tokens(scales) <= limits

    limits = torch.tensor(budgets, device=scores[0].device)
    low = limits.new_zeros(limits.shape, dtype=torch.float64)
    # With the highest amount every patch of the largest size is merged.
    high = (coarse[-1].flatten(1).amax(1) - thresholds[-1]).clamp(min=0) * 2 + 1
    untouched = merge(low)[1]
    for _ in range(40):
        middle = (low + high) / 2
        fits = merge(middle)[1]
        low, high = low.where(fits, middle), middle.where(fits, high)
    return merge(high.where(~untouched, 0))[0]


def share_budget(counts: Sequence[int], budget: int) -> list[int]:
    """Tokens of each image of a batch -> the most that each may have, so that the batch keeps to a budget.

    One limit for all of them, the highest that will do: images below it are left alone, the busiest pay.
    """
    left = budget
    for position, count in enumerate(sorted(counts)):
        limit = left // (len(counts) - position)
        if count > limit:
            return [limit] * len(counts)
        left -= count
    return list(counts)


def count_tokens(scales: Tensor) -> Tensor:
    """Scale maps (B, H, W) -> tokens of each image, (B,) float64 on the same device."""
    return torch.pow(0.25, scales.double()).sum((1, 2))


def check_thresholds(thresholds: Sequence[float], num_scales: int) -> None:
    """Raise ValueError unless there are ``num_scales - 1`` thresholds, numbers and none of them NaN."""
    if isinstance(thresholds, str) or not isinstance(thresholds, Iterable) or any(
            not isinstance(one, (Real, Tensor)) for one in thresholds):
        raise ValueError(f'thresholds={thresholds!r} are no numbers: give {num_scales - 1}, fine to coarse')
    if len(thresholds) != num_scales - 1:
        raise ValueError(f'got {len(thresholds)} thresholds {tuple(thresholds)} for {num_scales} scales: give '
                         f'{num_scales - 1}, fine to coarse, one for each scale above the base patch')
    if any(threshold != threshold for threshold in thresholds):
        raise ValueError(f'thresholds {tuple(thresholds)} contain a NaN')
