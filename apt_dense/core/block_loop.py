"""The loop over blocks on packed rows: one run of launches, a CUDA graph, or with rows that are merged on the way."""
import math
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apt_dense.core.attention import EXTRA_CHANNELS, size_channels, takes_lengths_from_device
from apt_dense.core.block import BlockTokens
from apt_dense.core.derived import product_dtype
from apt_dense.core.graphs import PackedInputs
from apt_dense.core.layers import BranchFactors, draw_drop_path
from apt_dense.core.layout import TokenLayout
from apt_dense.core.reduced import PackedRows, reduced_blocks
from apt_dense.core.rope import rope_table


def block_outputs(model: nn.Module, x: Tensor, layout: TokenLayout, wanted: frozenset[int], recompute: bool,
                  merged: tuple[int, ...] | None = None) -> list[Tensor]:
    """Run a ``PackedViT``'s blocks.

    Args:
        x: (T, C), embedded.
        layout: of these rows.
        wanted: see ``PackedViT.block_rows``.
        recompute: activations in the backward pass.
        merged: see ``Random.lengths``.

    Returns:
        (T, C) for each of the wanted ones, in ascending order.
    """
    inputs, factors = _start(model, x, layout)
    if model.reduction is not None:
        last = max(wanted, default=-1)  # no block after it is run
        steps = islice(reduced_blocks(model, inputs, layout, factors, recompute, merged), last + 2)
        return [state.spread(rows) for index, rows, state in steps if index in wanted]
    if model.graphs is None or torch.is_grad_enabled() or any(factor is not None for factor, _ in factors):
        return _launched(model, inputs, factors, wanted, recompute)
    channels = model.head_dim + (0 if inputs.size_channels is None else EXTRA_CHANNELS)
    query = x.new_empty(0, 1, channels, dtype=product_dtype(x))
    return model.graphs(lambda packed: _launched(model, packed, factors, wanted, False), inputs,
                        list(model.blocks.parameters()), x.is_cuda and (inputs.whole or (
                            takes_lengths_from_device(query, model.blocks[0].attn.backend))), wanted)


def last_rows(model: nn.Module, x: Tensor, layout: TokenLayout, recompute: bool,
              merged: tuple[int, ...] | None = None) -> PackedRows:
    """Run a ``PackedViT``'s blocks: the rows that are left at the end, not normed; see ``block_outputs``."""
    if model.reduction is None:
        rows = block_outputs(model, x, layout, frozenset([len(model.blocks) - 1]), recompute)[0]
        return PackedRows(rows, layout.areas, layout.images, layout.num_prefix)
    inputs, factors = _start(model, x, layout)
    *_, (_, rows, state) = reduced_blocks(model, inputs, layout, factors, recompute, merged)
    return PackedRows(rows, state.areas(layout.areas, len(rows)), state.images, layout.num_prefix)


def _start(model: nn.Module, x: Tensor, layout: TokenLayout) -> tuple[PackedInputs, list[BranchFactors]]:
    local, whole = rope_tables(model, layout, torch.promote_types(x.dtype, torch.float32))
    factors = draw_drop_path([block.drop_path for block in model.blocks], layout.images, product_dtype(x))
    counted = model.counts_cells and not layout.is_dense
    channels = size_channels(log_areas(layout), product_dtype(x)) if counted else None
    return PackedInputs(x, layout.windows, layout.images, local, whole, channels), factors


def log_areas(layout: TokenLayout) -> Tensor:
    """(T,) float32: the logarithm of the cells that each row counts as; 0 for a prefix row, which counts once."""
    return layout.scales.clamp(min=0) * math.log(4)


def rope_tables(model: nn.Module, layout: TokenLayout, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """The turns inside windows and in the image; None for those that no block needs."""
    return tuple(rope_table(layout, model.rope, windowed, model.rope_anchor, dtype) if wanted and model.rope else None
                 for windowed, wanted in ((True, model.window_size > 0), (False, True)))


def _launched(model: nn.Module, inputs: PackedInputs, factors: Sequence[BranchFactors], wanted: frozenset[int],
              recompute: bool) -> list[Tensor]:
    x = inputs.x
    outputs = [x] if -1 in wanted else []
    for index, block in enumerate(islice(model.blocks, max(wanted, default=-1) + 1)):
        local = model.window_size > 0 and index not in model.global_blocks
        runs, rope = (inputs.windows, inputs.local_rope) if local else (inputs.images, inputs.global_rope)
        tokens = BlockTokens(runs, rope, factors[index], inputs.size_channels)
        # Nothing in a block is drawn, so no state of a generator is kept for the recomputation.
        x = checkpoint(block, x, tokens, use_reentrant=False, preserve_rng_state=False) if recompute else (
            block(x, tokens))
        if index in wanted:
            outputs.append(x)
    return outputs
