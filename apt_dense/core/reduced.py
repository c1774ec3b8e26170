"""The loop over blocks where rows are merged or dropped on the way, and where the first tokens are meanwhile."""
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apt_dense.core.attention import log_sizes, size_channels
from apt_dense.core.block import BlockTokens
from apt_dense.core.derived import product_dtype
from apt_dense.core.dropping import Random
from apt_dense.core.graphs import PackedInputs
from apt_dense.core.layers import BranchFactors
from apt_dense.core.layout import TokenLayout
from apt_dense.core.reduction import Attended, Step
from apt_dense.core.runs import Runs


def reduced_blocks(model: nn.Module, inputs: PackedInputs, layout: TokenLayout, factors: Sequence[BranchFactors],
                   recompute: bool,
                   merged: tuple[int, ...] | None = None) -> Iterator[tuple[int, Tensor, 'ReducedRows']]:
    """Run a ``PackedViT``'s blocks with its reduction.

    Args:
        inputs, layout: of the first tokens.
        factors: of drop path.
        recompute: activations in the backward pass.
        merged: see ``Random.lengths``.

    Yields:
        The number of each block, its rows (T', C), and where the first tokens are; first -1, what enters block 0.
    """
    x, reduction = inputs.x, model.reduction
    sizes = None if inputs.size_channels is None else layout.areas.clamp(min=1).float()
    # The model decides, and not this batch: an image is the same alone and beside one in which patches merge.
    state = ReducedRows(layout, (inputs.local_rope, inputs.global_rope),
                        reduction.proportional or model.counts_cells, sizes)
    if isinstance(reduction, Random):
        wanted = reduction.lengths(state.windows.lengths, state.prefix, merged)
        step = reduction.start(x, state.windows, state.prefix, wanted)
        state.follow(step, x)
        x, factors = step.x, _of_rows(factors, step)
    yield -1, x, state
    for index, block in enumerate(model.blocks):
        local = model.window_size > 0 and index not in model.global_blocks
        runs, rope = (state.windows, state.ropes[0]) if local else (state.images, state.ropes[1])
        reduces = index in reduction.blocks
        reduce = partial(_reduce, reduction, index, state.told()) if reduces else None
        counted = state.proportional and state.sizes is not None
        channels = size_channels(log_sizes(state.sizes), product_dtype(x)) if counted else None
        tokens = BlockTokens(runs, rope, factors[index], channels, reduce)
        # Nothing is drawn in a block, so no state of a generator is kept for the recomputation.
        before, x = x, checkpoint(block, x, tokens, use_reentrant=False, preserve_rng_state=False) if recompute else (
            block(x, tokens))
        if reduces:
            x, step = x
            state.follow(step, before)
            factors = _of_rows(factors, step)
        yield index, x, state


def _reduce(reduction: nn.Module, index: int, told: dict, **known: Tensor) -> Step:
    return reduction(index, Attended(**known, **told))


def _of_rows(factors: Sequence[BranchFactors], step: Step) -> list[BranchFactors]:
    return [tuple(part if part is None else part[step.rows] for part in pair) for pair in factors]


class BlockRows(NamedTuple):
    """How many rows a block has: of each window, of each image, and of each window after its reduction.

    ``reduction`` are the multiply-adds of that; ``counted``, whether its attention counts rows by their sizes.
    """
    windows: tuple[int, ...]
    images: tuple[int, ...]
    left: tuple[int, ...]
    reduction: int
    counted: bool


def rows_by_block(model: nn.Module, layout: TokenLayout) -> list[BlockRows]:
    """What follows from the layout alone, for each block of a ``PackedViT``; in evaluation.

    Raises:
        ValueError: for a reduction that follows from the image.
    """
    reduction, per_image = model.reduction, len(layout.windows.lengths) // layout.batch_size
    prefix, lengths, found = prefix_of_runs(layout), layout.windows.lengths, []
    has_sizes = model.counts_cells and not layout.is_dense
    proportional = model.counts_cells or reduction is not None and reduction.proportional
    if isinstance(reduction, Random):
        lengths = reduction.lengths(lengths, prefix)
    for index in range(len(model.blocks)):
        left, work = lengths, 0
        if reduction is not None and index in reduction.blocks:
            left = reduction.lengths_after(index, lengths, prefix)
            work = sum(reduction.multiply_adds(length, model.embed_dims, model.head_dim) for length in lengths)
        images = tuple(sum(lengths[begin:begin + per_image]) for begin in range(0, len(lengths), per_image))
        found.append(BlockRows(lengths, images, left, work, proportional and has_sizes))
        lengths = left
        has_sizes |= reduction is not None and reduction.uses_sizes and index in reduction.blocks
    return found


def prefix_of_runs(layout: TokenLayout) -> tuple[int, ...]:
    """Prefix rows at the beginning of each window; among several, the prefix of an image is the first of them."""
    per_image = len(layout.windows.lengths) // layout.batch_size
    return tuple(layout.num_prefix if index % per_image == 0 else 0 for index in range(len(layout.windows.lengths)))


class PackedRows(NamedTuple):
    """The rows that a ``PackedViT`` ends with, T' over B images.

    Attributes:
        rows: (T', C), those of each image in a run, its prefix rows first.
        areas: (T',) int64, cells that each row stands for, after what a reduction has done; 0 for a prefix row.
        images: the runs.
        num_prefix: prefix rows of each image.
    """
    rows: Tensor
    areas: Tensor
    images: Runs
    num_prefix: int


class ReducedRows:
    """Where the first tokens are, while blocks reduce rows.

    Args:
        layout: of the first tokens, T.
        ropes: their turns inside windows and in the image; None for none.
        proportional: attention counts rows by their sizes.
        sizes: (T,), of the first tokens; None for one each.
    """

    def __init__(self, layout: TokenLayout, ropes: Sequence[Tensor | None], proportional: bool,
                 sizes: Tensor | None = None):
        self.windows, self.images = layout.windows, layout.images
        self.per_image = len(layout.windows.lengths) // layout.batch_size
        self.ropes = list(ropes)
        self.proportional = proportional
        self.sizes = sizes
        self.active: tuple[int, ...] | None = None
        self._source: Tensor | None = None  # (T,): the row that holds each first token; None at the beginning
        self._held: Tensor | None = None  # (T, C): what those had that are gone
        self.prefix = prefix_of_runs(layout)

    def told(self) -> dict:
        """What a reduction is told of them, as they are now."""
        return dict(sizes=self.sizes, runs=self.windows, prefix=self.prefix, active=self.active)

    def follow(self, step: Step, before: Tensor) -> None:
        """Note what a step did; ``before`` (T', C) are the rows that it had."""
        if self._source is None:
            self._source = torch.arange(len(before), device=before.device)
        moved = step.dest[self._source.clamp(min=0)].where(self._source >= 0, -1)
        if step.sizes is None:  # otherwise each row goes into another one
            values = before[self._source.clamp(min=0)]
            goes = ((moved < 0) & (self._source >= 0))[:, None]
            self._held = values.where(goes, 0 if self._held is None else self._held)
        self._source = moved
        self.ropes = [rope if rope is None else rope[step.rows] for rope in self.ropes]
        dropped = step.sizes is None and self.sizes is not None  # the rows that are left keep their sizes
        self.sizes, self.active = self.sizes[step.rows] if dropped else step.sizes, step.active
        device, whole = before.device, self.windows is self.images
        self.windows = Runs.from_lengths(step.lengths, device)
        ends = range(0, len(step.lengths), self.per_image)
        self.images = self.windows if whole else Runs.from_lengths(
            tuple(sum(step.lengths[begin:begin + self.per_image]) for begin in ends), device)

    def spread(self, x: Tensor) -> Tensor:
        """(T', C) -> (T, C): for each first token the row that holds it, or what it had when it went."""
        if self._source is None:
            return x
        rows = x[self._source.clamp(min=0)]
        return rows if self._held is None else rows.where((self._source >= 0)[:, None], self._held.to(rows.dtype))

    def areas(self, first: Tensor, count: int) -> Tensor:
        """Cells of the first tokens (T,) -> of the ``count`` rows that hold them; those that are gone count nowhere."""
        if self._source is None:
            return first
        return first.new_zeros(count).index_add(0, self._source.clamp(min=0), first.where(self._source >= 0, 0))
