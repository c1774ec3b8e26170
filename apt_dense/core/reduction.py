"""Tokens merged or dropped inside the network, between attention and MLP: ToMe, EViT, DTEM, Random.

Legend: T rows, R runs (windows, or images where there are none) of at most L rows, P prefix rows before each image.

A reduction works inside each run, so that every run stays contiguous and windows stay windows.  How many rows a run
keeps follows from its length alone: the host never waits.  Prefix rows are never merged and never dropped.
"""
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from apt_dense.core.arguments import block_indexes
from apt_dense.core.runs import Runs


@dataclass(frozen=True)
class Attended:
    """What a block knows where a reduction works in it.

    Attributes:
        x: (T, C), after the attention's branch was added.
        normed: (T, C), the attention's input.
        queries, keys: (T, heads, head_dim), as they attended.
        unturned_keys: before rotation.
        sizes: (T,) float32, how many of the first tokens each row holds, or of their cells; None for one each.
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
        self.blocks = tuple(sorted(block_indexes('reduction.blocks', indexes, depth)))
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
    ends = [*(2 * index + 1 for index in blocks[1:]), 2 * depth][:len(blocks)]
    layers = [end - 2 * index - 1 for index, end in zip(blocks, ends, strict=True)]

    def mean(share: float) -> float:
        reduced = sum(number * share**turn for turn, number in enumerate(layers, start=1))
        return (2 * depth - sum(layers) + reduced) / (2 * depth)

    least = mean(lowest) if blocks else 1.0
    if not least <= kept <= 1:
        raise ValueError(f'reduction.kept={kept}: in blocks {list(blocks)} of {depth} it can be {least:.3f} to 1, '
                         'set kept or blocks accordingly')
    low, high = lowest, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if mean(middle) > kept else (middle, high)
    return (low + high) / 2
