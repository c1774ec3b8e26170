"""Tokens dropped on the way, or from the beginning: EViT and Random.  Legend: see ``reduction``."""
from collections.abc import Sequence

import torch
from torch import Tensor

from apt_dense.core.arguments import is_number
from apt_dense.core.attention import log_sizes
from apt_dense.core.reduction import Attended, Reduction, Step
from apt_dense.core.runs import Padded, Runs, per_run


class EViT(Reduction):
    """Keep the rows that the class token attends to most; the others become one, or go.

    Args:
        rates: in place of ``kept``: the share that each of ``blocks`` keeps; one number or one for each.
        fuse: the rows that go are summed, weighted by the class token's attention, to one row more, the last.

    Source: EViT (arXiv 2202.07800) and its public code: the weights of the fused row are not normalised.
    """
    uses_sizes = False
    lowest = 0.0

    def __init__(self, depth: int, kept: float | None = None, blocks: Sequence[int] | None = None,
                 rates: float | Sequence[float] | None = None, fuse: bool = True):
        if (kept is None) == (rates is None):
            raise ValueError('reduction: give kept, a mean share of the tokens, or rates, the shares that blocks keep')
        super().__init__(depth, kept, blocks)
        given = [self.share] * len(self.blocks) if rates is None else (
            list(rates) if isinstance(rates, Sequence) else [rates] * len(self.blocks))
        if len(given) != len(self.blocks) or not all(is_number(rate) and 0 < rate <= 1 for rate in given):
            raise ValueError(f'reduction.rates={rates!r}: wanted one above 0 and at most 1, or one for each of the '
                             f'blocks {list(self.blocks)}')
        self.rates = dict(zip(self.blocks, given, strict=True))
        self.fuse = fuse

    def left(self, index: int, length: int) -> int:
        return -int(-(self.rates[index] * length) // 1)  # rounded up

    def lengths_after(self, index: int, lengths: Sequence[int], prefix: Sequence[int]) -> tuple[int, ...]:
        return tuple(after + (self.fuse and after < before) for before, after in zip(
            lengths, super().lengths_after(index, lengths, prefix), strict=True))

    def forward(self, index: int, attended: Attended) -> Step:
        padded, prefix, lengths = Padded(attended.runs), attended.prefix, attended.runs.lengths
        x, device = attended.x, attended.x.device
        scores = class_attention(attended, padded)  # (R, L), -inf for what is no candidate
        kept = [self.left(index, length - rows) for length, rows in zip(lengths, prefix, strict=True)]
        fused = [int(self.fuse and number < length - rows)
                 for number, length, rows in zip(kept, lengths, prefix, strict=True)]
        group = torch.where(padded.places < per_run(prefix, device), 0, 1).masked_fill(~padded.valid, 2)
        by_score = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        turn = torch.where(group == 0, padded.places, by_score)
        new_order = (group * padded.valid.shape[1] + turn).argsort(dim=-1, stable=True)
        place = new_order.argsort(dim=-1)
        first_gone = per_run([number + rows for number, rows in zip(kept, prefix, strict=True)], device)
        goes = (place >= first_gone) & padded.valid
        new_lengths = tuple(number + rows + more for number, rows, more in zip(kept, prefix, fused, strict=True))
        new = Padded(Runs.from_lengths(new_lengths, device))
        # The fused row stands where the first one that goes would; its position is that of the first prefix row, and it
        # counts once, as that does.
        holds = new.starts[:, None] + torch.where(goes, first_gone, place)
        dest = padded.flatten(torch.where(goes & (per_run(fused, device) == 0), -1, holds))
        rows = new.flatten(padded.index.gather(1, new_order))
        moved = x[rows]
        if any(fused):
            weights = torch.where(goes, scores, 0).to(x.dtype)
            sums = (weights[..., None] * padded.spread(x)).sum(1)  # (R, C)
            where = torch.tensor([sum(new_lengths[:run + 1]) - 1 for run, more in enumerate(fused) if more])
            where = where.to(device, non_blocking=True)
            which = torch.tensor([run for run, more in enumerate(fused) if more]).to(device, non_blocking=True)
            moved = moved.index_copy(0, where, sums[which])
            rows = rows.index_copy(0, where, padded.starts[which])
        return Step(moved, None, new_lengths, rows, dest)


def class_attention(attended: Attended, padded: Padded) -> Tensor:
    """The class token's attention to each row of its run, mean over heads: (R, L), -inf for prefix and nothing."""
    queries = attended.queries[padded.starts].float()  # (R, heads, head_dim): the first row of each run
    keys = padded.spread(attended.keys.float())
    logits = torch.einsum('rhd,rlhd->rhl', queries, keys) * attended.keys.shape[-1]**-0.5
    if attended.sizes is not None:  # as the block's attention counts them
        logits = logits + padded.spread(log_sizes(attended.sizes))[:, None]
    weights = logits.masked_fill(~padded.valid[:, None], -torch.inf).softmax(-1).mean(1)
    candidate = padded.valid & (padded.places >= per_run(attended.prefix, weights.device))
    return weights.masked_fill(~candidate, -torch.inf)


class Random(Reduction):
    """Keep rows at random, from the beginning: the paper's baseline.

    Args:
        kept: share of the rows; None keeps as many base patches as the thresholds would leave patches.
        seed: of the draw in evaluation, so that it is the same each time.

    Source: APT, section 4: "masking as many tokens as APT saves".
    """
    uses_sizes = False

    def __init__(self, depth: int, kept: float | None = None, seed: int = 0):
        super().__init__(depth, None, ())
        self.kept, self.seed = kept, seed

    def lengths(self, lengths: Sequence[int], prefix: Sequence[int],
                merged: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Of the runs that begin, prefix rows included.

        Args:
            merged: lengths that the thresholds would leave; without ``kept`` they are what is wanted.

        Raises:
            ValueError: if they are needed and not given.
        """
        if self.kept is None:
            if merged is None:
                raise ValueError("how many rows reduction.type='Random' keeps follows from the image, not from the "
                                 'layout: set reduction.kept')
            return merged
        return tuple(rows + max(1, round(self.kept * (length - rows))) if length > rows else rows
                     for length, rows in zip(lengths, prefix, strict=True))

    def start(self, x: Tensor, runs: Runs, prefix: tuple[int, ...], wanted: tuple[int, ...]) -> Step:
        """Choose the rows that begin.

        Args:
            x: (T, C), embedded.
            wanted: of ``lengths``.
        """
        padded, device = Padded(runs), x.device
        generator = None if self.training else torch.Generator().manual_seed(self.seed)
        draws = torch.rand(padded.valid.shape, generator=generator, device='cpu').to(device, non_blocking=True)
        draws = draws.masked_fill(padded.places < per_run(prefix, device), -1).masked_fill(~padded.valid, 2)
        stays = draws.argsort(dim=-1).argsort(dim=-1) < per_run(wanted, device)
        new_order = torch.where(stays, 0, 1).argsort(dim=-1, stable=True)
        new = Padded(Runs.from_lengths(wanted, device))
        place = new_order.argsort(dim=-1) + new.starts[:, None]
        dest = padded.flatten(place.where(stays, -1))
        rows = new.flatten(padded.index.gather(1, new_order))
        return Step(x[rows], None, wanted, rows, dest)
