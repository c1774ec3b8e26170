"""Tokens merged or dropped inside the network, between attention and MLP: ToMe, EViT, DTEM, Random.

Legend: T rows, R runs (windows, or images where there are none) of at most L rows, P prefix rows before each image.

A reduction works inside each run, so that every run stays contiguous and windows stay windows.  How many rows a run
keeps follows from its length alone: the host never waits.  Prefix rows are never merged and never dropped.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_dense.core.runs import Runs


@dataclass(frozen=True)
class Attended:
    """What a block knows where a reduction works in it.

    Attributes:
        x: (T, C), after the attention's branch was added.
        normed: (T, C), the attention's input.
        queries, keys: (T, heads, head_dim), as they attended.
        unturned_keys: before rotation.
        sizes: (T,) float32, how many of the first tokens each row holds; None for one each.
        runs: inside which rows are reduced.
        prefix: (R,) on the host, how many rows at the beginning of each run are prefix rows.
        active: (R,) on the host, how many rows of each run take part; None for all.
    """
    x: Tensor
    normed: Tensor
    queries: Tensor
    keys: Tensor
    unturned_keys: Tensor
    sizes: Tensor | None
    runs: Runs
    prefix: tuple[int, ...]
    active: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Step:
    """What one reduction did.

    Attributes:
        x: (T', C).
        sizes: (T',) float32, or None where rows have no size.
        lengths: of the runs, on the host.
        rows: (T',) int64, an old row for each new one: whose position and drop path it keeps.
        dest: (T,) int64, the new row that holds each old one; -1 for one that is gone.
        active: rows of each run that still take part, where the others only wait; None for all.
    """
    x: Tensor
    sizes: Tensor | None
    lengths: tuple[int, ...]
    rows: Tensor
    dest: Tensor
    active: tuple[int, ...] | None = None


class Padded:
    """Rows of unequal runs as one rectangle (R, L), and back."""

    def __init__(self, runs: Runs):
        self.runs = runs
        device = runs.cu_seqlens.device
        self.starts = runs.cu_seqlens[:-1].long()
        self.places = torch.arange(max(runs.lengths), device=device)
        self.valid = self.places < runs.cu_seqlens.diff()[:, None]
        self.index = (self.starts[:, None] + self.places).where(self.valid, 0)
        self.place = torch.arange(sum(runs.lengths), device=device) - self.starts[runs.index]  # of each row in its run

    def spread(self, values: Tensor) -> Tensor:
        """(T, ...) -> (R, L, ...); beyond a run's end stand values of row 0."""
        return values[self.index]

    def flatten(self, values: Tensor) -> Tensor:
        """(R, L', ...) -> (T, ...), L' at least the longest run."""
        return values[self.runs.index, self.place]


def per_run(values: Sequence[int], device: torch.device) -> Tensor:
    """(R,) numbers of the host -> (R, 1) on the device."""
    return torch.tensor(values).to(device, non_blocking=True)[:, None]


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


class Reduction(nn.Module):
    """A way to have fewer tokens: ``forward(index, attended)``, called in block ``index``, returns a ``Step``.

    Args:
        depth: of the model.
        kept: wanted mean, over the attention and MLP layers, of tokens over those at the beginning.  Each block of
            ``blocks`` keeps the same share.
        blocks: where; by default all but the last one.
        proportional: attention counts a row as often as the tokens that it holds (log of the size is added to the
            logits); False is the paper's "advanced" variant, whose attention needs nothing.

    Raises:
        ValueError: for a share that cannot be reached.
    """
    uses_sizes = True
    lowest = 0.5  # of the rows, that one step can leave

    def __init__(self, depth: int, kept: float | None = None, blocks: Sequence[int] | None = None,
                 proportional: bool = True):
        super().__init__()
        self.proportional = proportional and self.uses_sizes
        indexes = range(depth - 1) if blocks is None else blocks
        outside = [index for index in indexes if not -depth <= index < depth]
        if outside:
            raise ValueError(f'reduction.blocks holds {outside}, but depth={depth}')
        self.blocks = tuple(sorted({index % depth for index in indexes}))
        self.share = 1.0
        if kept is not None:
            self.share = share_of_each(kept, self.blocks, depth, self.lowest)

    def left(self, index: int, length: int) -> int:
        """Rows, prefix not counted, that block ``index`` leaves of so many."""
        return max(length - length // 2, min(length, round(length * self.share)))

    def lengths_after(self, index: int, lengths: Sequence[int], prefix: Sequence[int]) -> tuple[int, ...]:
        """Of the runs after block ``index``, prefix rows included."""
        return tuple(rows + self.left(index, length - rows) for length, rows in zip(lengths, prefix, strict=True))

    def multiply_adds(self, length: int, embed_dims: int, head_dim: int) -> int:
        """Of one step on a run of so many rows."""
        return 0


def share_of_each(kept: float, blocks: Sequence[int], depth: int, lowest: float) -> float:
    """What share each block must keep so that the mean over all layers is ``kept``.

    Raises:
        ValueError: if one step cannot leave so little.
    """
    # Layers (attention, MLP) from each step on; those before the first one have all rows.
    ends = [2 * index + 1 for index in blocks[1:]] + [2 * depth]
    layers = [end - 2 * index - 1 for index, end in zip(blocks, ends, strict=True)]

    def mean(share: float) -> float:
        reduced = sum(number * share**turn for turn, number in enumerate(layers, start=1))
        return (2 * depth - sum(layers) + reduced) / (2 * depth)

    least = mean(lowest) if blocks else 1.0
    if not least <= kept <= 1:
        raise ValueError(f'reduction.kept={kept}: in blocks {list(blocks)} of {depth} it can be {least:.3f} to 1')
    low, high = lowest, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if mean(middle) > kept else (middle, high)
    return (low + high) / 2


class ToMe(Reduction):
    """Token merging: every second row may go into one of the others, by the likeness of their keys.

    Args:
        r: in place of ``kept``: rows that go in each block; one number, a list (missing ones are 0), or a pair
            (mean, inflection) as in the public code.

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
    elif isinstance(r, tuple) and len(r) == 2 and isinstance(r[1], float):
        low = int(r[0] * (1 - r[1]))
        high = 2 * r[0] - low
        numbers = [int(low + index * (high - low) / max(depth - 1, 1)) for index in range(depth)]
    if not isinstance(numbers, Sequence) or len(numbers) > depth or not all(
            isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError(f'reduction.r={r!r}: wanted a number of rows, at most {depth} of them, one for each block, or '
                         '(mean, inflection) with a fraction second, none of them below 0')
    return [*numbers, *[0] * (depth - len(numbers))]


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
            [rates] * len(self.blocks) if isinstance(rates, float | int) else list(rates))
        if len(given) != len(self.blocks) or not all(0 < rate <= 1 for rate in given):
            raise ValueError(f'reduction.rates={rates}: wanted one above 0 and at most 1, or one for each of the '
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
        # The fused row stands where the first one that goes would; its position is that of the first prefix row.
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
    weights = logits.masked_fill(~padded.valid[:, None], -torch.inf).softmax(-1).mean(1)
    candidate = padded.valid & (padded.places >= per_run(attended.prefix, weights.device))
    return weights.masked_fill(~candidate, -torch.inf)


class DTEM(ToMe):
    """Token merging by a small learnt metric, which a soft relaxation of the merging trains.

    In evaluation it is ToMe with that metric.  In training no row goes: sources give a part of their size to targets,
    and rows are sorted by size, of which fewer take part each time.

    Args:
        embed_dims: C of the model.
        metric_dims: channels of the metric; those of a head by default.
        nearest, tau1, tau2: of the soft merging: targets that a source may go to, and two temperatures.

    Source: DTEM (Lee and Hong, NeurIPS 2024) and the behaviour of its public code.
    """

    def __init__(self, depth: int, kept: float | None = None, blocks: Sequence[int] | None = None,
                 r: int | Sequence[int] | tuple[int, float] | None = None, *, embed_dims: int, metric_dims: int,
                 nearest: int = 3, tau1: float = 0.1, tau2: float = 0.1):
        super().__init__(depth, kept, blocks, True, r)
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
        if kept is not None and not 0 < kept <= 1:
            raise ValueError(f'reduction.kept={kept} must be above 0 and at most 1')
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
        draws = torch.rand(padded.valid.shape, generator=generator).to(device, non_blocking=True)
        draws = draws.masked_fill(padded.places < per_run(prefix, device), -1).masked_fill(~padded.valid, 2)
        stays = draws.argsort(dim=-1).argsort(dim=-1) < per_run(wanted, device)
        new_order = torch.where(stays, 0, 1).argsort(dim=-1, stable=True)
        new = Padded(Runs.from_lengths(wanted, device))
        place = new_order.argsort(dim=-1) + new.starts[:, None]
        dest = padded.flatten(place.where(stays, -1))
        rows = new.flatten(padded.index.gather(1, new_order))
        return Step(x[rows], None, wanted, rows, dest)


REDUCTIONS = {'ToMe': ToMe, 'EViT': EViT, 'DTEM': DTEM, 'Random': Random}


def build_reduction(config: Mapping[str, Any], depth: int, embed_dims: int, head_dim: int) -> Reduction:
    """Build a reduction from ``dict(type='ToMe', kept=0.7)``.

    Raises:
        ValueError: for an unknown type, or arguments that do not fit.
    """
    arguments = dict(config)
    kind = arguments.pop('type', None)
    if kind not in REDUCTIONS:
        raise ValueError(f'unknown reduction type {kind!r}: choose one of {tuple(REDUCTIONS)}')
    if kind == 'DTEM':
        arguments = dict(dict(embed_dims=embed_dims, metric_dims=head_dim), **arguments)
    try:
        return REDUCTIONS[kind](depth, **arguments)
    except TypeError as error:
        raise ValueError(f'reduction={dict(config)}: {error}') from error
