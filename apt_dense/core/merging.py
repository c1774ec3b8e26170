"""Tokens merged on the way: ToMe and DTEM.  Legend: see ``reduction``."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_dense.core.arguments import is_number, is_whole
from apt_dense.core.reduction import Attended, Reduction, Step
from apt_dense.core.runs import Padded, Runs, per_run


def best_targets(metric: Tensor, padded: Padded, prefix: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """For each even position of each run its most similar odd one: likeness and index, (R, ceil(L / 2)).

    Args:
        metric: (T, d), compared by its cosine.
        prefix: rows at the beginning of each run that neither go nor are gone into; their likeness is -inf.
    """
    allowed = padded.valid & (padded.places >= per_run(prefix, metric.device))
    compared = padded.spread(F.normalize(metric.float(), dim=-1))
    scores = compared[:, ::2] @ compared[:, 1::2].mT
    scores = scores.masked_fill(~allowed[:, ::2, None] | ~allowed[:, None, 1::2], -torch.inf)
    if not scores.shape[-1]:  # runs of one row
        return scores.new_full(scores.shape[:2], -torch.inf), scores.new_zeros(scores.shape[:2], dtype=torch.long)
    return scores.max(-1)


def merge(attended: Attended, metric: Tensor, gone: Sequence[int]) -> Step:
    """Merge the ``gone`` most alike rows of each run into others, by bipartite matching.

    The new order of a run is that of ToMe's code, because the next split depends on it: prefix, even positions that
    stay, odd ones.  Those that stay are in their order; in a run without a prefix in the order of their likeness.
    """
    padded, prefix, device = Padded(attended.runs), attended.prefix, metric.device
    best, into = best_targets(metric, padded, prefix)
    length, half = padded.valid.shape[1], best.shape[1]
    order = best.argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    moves = torch.zeros_like(padded.valid)
    moves[:, ::2] = rank < per_run(gone, device)
    is_prefix = padded.places < per_run(prefix, device)
    turn = padded.places.expand_as(moves).clone()
    by_likeness = [bool(number) and not rows for number, rows in zip(gone, prefix, strict=True)]
    turn[:, ::2] = torch.where(per_run(by_likeness, device), rank, turn[:, ::2])
    group = torch.where(is_prefix, 0, 1 + padded.places % 2)
    group = torch.where(per_run([not number for number in gone], device), 0, group)  # nothing goes: nothing moves
    group = torch.where(moves | ~padded.valid, 3, group)
    new_order = (group * (length + half) + turn).argsort(dim=-1, stable=True)
    place = new_order.argsort(dim=-1)  # the new place of each old one
    target = place.clone()
    if half < length:
        taken = place[:, 1::2].gather(1, into.clamp(max=length // 2 - 1))
        target[:, ::2] = taken.where(moves[:, ::2], place[:, ::2])
    lengths = tuple(length - number for length, number in zip(attended.runs.lengths, gone, strict=True))
    new = Padded(Runs.from_lengths(lengths, device))
    dest = padded.flatten(target + new.starts[:, None])
    rows = new.flatten(padded.index.gather(1, new_order))
    x, sizes = average(attended.x, attended.sizes, dest, len(rows))
    return Step(x, sizes, lengths, rows, dest)


def average(x: Tensor, sizes: Tensor | None, dest: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows (T, C) -> the means, weighted by size, of those that go to each of ``count`` new ones, and their sizes."""
    sizes = torch.ones(len(x), device=x.device) if sizes is None else sizes
    weights = sizes.to(x.dtype)[:, None]
    total = x.new_zeros(count, x.shape[1]).index_add(0, dest, x * weights)
    summed = sizes.new_zeros(count).index_add(0, dest, sizes)
    return total / summed.to(x.dtype)[:, None], summed


class ToMe(Reduction):
    """Token merging: every second row may go into one of the others, by the likeness of their keys.

    Args:
        r: in place of ``kept``: rows that go in each block; one number, a list (missing ones are 0), or a pair
            (mean, inflection) as in the public code: the numbers rise in equal steps for an inflection above 0, fall
            for one below.  Two numbers for two blocks are a list.

    Source: ToMe (arXiv 2210.09461) and its public code, which skips LayerScale; here it is kept.
    """

    def __init__(self, depth: int, kept: float | None = None, blocks: Sequence[int] | None = None,
                 proportional: bool = True, r: int | Sequence[int] | tuple[int, float] | None = None):
        if (kept is None) == (r is None):
            raise ValueError('reduction: give kept, a share of the tokens, or r, how many go in each block')
        gone = None if r is None else parse_r(r, depth)
        if gone is not None:
            if blocks is not None:
                raise ValueError('reduction: r says how many rows go in each block, leave blocks out')
            blocks = [index for index, number in enumerate(gone) if number]
        super().__init__(depth, kept, blocks, proportional)
        self.gone = gone

    def left(self, index: int, length: int) -> int:
        if self.gone is None:
            return super().left(index, length)
        return length - min(self.gone[index], length // 2)

    def multiply_adds(self, length: int, embed_dims: int, head_dim: int) -> int:
        return (length - length // 2) * (length // 2) * head_dim

    def metric(self, index: int, attended: Attended) -> Tensor:
        """(T, d), what is compared."""
        return attended.unturned_keys.mean(1)

    def forward(self, index: int, attended: Attended) -> Step:
        lengths = attended.runs.lengths
        left = self.lengths_after(index, lengths, attended.prefix)
        gone = [before - after for before, after in zip(lengths, left, strict=True)]
        return merge(attended, self.metric(index, attended), gone)


def parse_r(r: int | Sequence[int] | tuple[int, float], depth: int) -> list[int]:
    """Rows that go in each block, as ToMe's public code reads them; ValueError for anything else."""
    numbers = r
    if isinstance(r, int):
        numbers = [r] * depth
    elif _is_pair(r):
        low = int(r[0] * (1 - r[1]))
        high = 2 * r[0] - low
        steps = [int(low + index * (high - low) / max(depth - 1, 1)) for index in range(depth)]
        numbers = [max(step, 0) for step in steps]  # below 0 nothing merges
    if not isinstance(numbers, Sequence) or len(numbers) > depth or not all(
            map(is_whole, numbers)):
        raise ValueError(f'reduction.r={r!r}: wanted a number of rows, at most {depth} of them, one for each block, or '
                         '(mean, inflection), none of them below 0')
    return [*numbers, *[0] * (depth - len(numbers))]


def _is_pair(r: object) -> bool:
    """(mean, inflection): a tuple, or a list of which the second is a fraction, as a file without tuples has it."""
    return isinstance(r, (list, tuple)) and len(r) == 2 and all(map(is_number, r)) and (
        isinstance(r, tuple) or isinstance(r[1], float))


class DTEM(ToMe):
    """Token merging by a small learnt metric, which a soft relaxation of the merging trains.

    In evaluation it is ToMe with that metric.  In training no row goes: sources give a part of their size to targets,
    and rows are sorted by size, of which fewer take part each time.

    Args:
        embed_dims: C of the model.
        metric_dims: channels of the metric; by default those of a head, and of two from 1024 embed_dims on.
        nearest, tau1, tau2: of the soft merging: targets that a source may go to, and two temperatures.

    Source: DTEM (Lee and Hong, NeurIPS 2024) and the behaviour of its public code.
    """

    def __init__(self, depth: int, kept: float | None = None, blocks: Sequence[int] | None = None,
                 proportional: bool = True, r: int | Sequence[int] | tuple[int, float] | None = None, *,
                 embed_dims: int, metric_dims: int, nearest: int = 3, tau1: float = 0.1, tau2: float = 0.1):
        super().__init__(depth, kept, blocks, proportional, r)
        self.nearest, self.tau1, self.tau2, self.metric_dims = nearest, tau1, tau2, metric_dims
        self.metrics = nn.ModuleDict({str(index): nn.Linear(embed_dims, metric_dims) for index in self.blocks})

    def multiply_adds(self, length: int, embed_dims: int, head_dim: int) -> int:
        return super().multiply_adds(length, embed_dims, self.metric_dims) + length * embed_dims * self.metric_dims

    def metric(self, index: int, attended: Attended) -> Tensor:
        return self.metrics[str(index)](attended.normed.detach() if self.training else attended.normed)

    def forward(self, index: int, attended: Attended) -> Step:
        if not self.training:
            return super().forward(index, attended)
        metric = F.normalize(self.metric(index, attended).float(), dim=-1)
        sizes = torch.ones(len(metric), device=metric.device) if attended.sizes is None else attended.sizes
        lengths, runs = attended.runs.lengths, []
        active = attended.active or lengths
        parts = zip(attended.x.split(lengths), metric.split(lengths), sizes.split(lengths), attended.prefix, active,
                    strict=True)
        for x, compared, size, prefix, count in parts:
            gone = count - prefix - self.left(index, count - prefix)
            runs.append((*self._soft(x, compared, size, prefix, count, gone), count - gone))
        x, sizes, order, active = (list(part) for part in zip(*runs, strict=True))
        starts = attended.runs.cu_seqlens[:-1].long()
        rows = torch.cat([start + places for start, places in zip(starts, order, strict=True)])
        return Step(torch.cat(x), torch.cat(sizes), lengths, rows, rows.argsort(), tuple(active))

    def _soft(self, x: Tensor, metric: Tensor, sizes: Tensor, prefix: int, count: int,
              gone: int) -> tuple[Tensor, Tensor, Tensor]:
        """Merge a part of the first ``count`` rows of a run: rows, sizes, and which old row each was."""
        order = torch.arange(len(x), device=x.device)
        sources, targets = order[prefix:count:2], order[prefix + 1:count:2]
        if not gone or not len(targets):
            return x, sizes, order
        likeness, into = (metric[sources] @ metric[targets].T).topk(min(self.nearest, len(targets)), -1)
        share = self._assign(likeness / self.tau1, gone)
        given = share * sizes[sources, None]  # of the size of each source, to each of its nearest targets
        flat = targets[into].flatten()
        weights = sizes.index_add(0, flat, given.flatten())
        sums = (x * sizes[:, None].to(x.dtype)).index_add(
            0, flat, (given[..., None].to(x.dtype) * x[sources, None]).flatten(0, 1))
        merged = sums[targets] / weights[targets, None].to(x.dtype)
        x = x.index_copy(0, targets, merged)
        left = sizes[sources] * (1 - share.sum(-1)).clamp(0, 1)
        sizes = weights.index_copy(0, sources, left)
        by_size = sizes[prefix:count].argsort(descending=True, stable=True)
        order = torch.cat([order[:prefix], prefix + by_size, order[count:]])
        return x[order], sizes[order], order

    def _assign(self, logits: Tensor, times: int) -> Tensor:
        """(sources, nearest) -> what share of each source goes to each target; the sum is about ``times``."""
        share = torch.zeros_like(logits)
        for _ in range(times):
            drawn = (logits / self.tau2).flatten().softmax(0).view_as(logits)
            share = share + drawn
            logits = logits + (1 - drawn.sum(-1, keepdim=True)).clamp(min=torch.finfo(torch.float32).eps).log()
        return share / share.sum(-1, keepdim=True).clamp(min=1).detach()
