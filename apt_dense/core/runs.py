"""Contiguous runs of packed tokens."""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Runs:
    """Contiguous runs of packed tokens that attend among themselves: windows or images.

    Attributes:
        cu_seqlens: (R + 1,) int32, on the tokens' device: run r is the rows cu_seqlens[r] to cu_seqlens[r + 1].
        lengths: the R lengths, on the host.
        whole_length: of a run in which nothing is merged; None if that is not known.
        bound: counts as the longest run, where launches must not depend on the lengths; None for the true one.
    """
    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    whole_length: int | None = None
    bound: int | None = None

    @classmethod
    def from_lengths(cls, lengths: tuple[int, ...], device: torch.device, whole_length: int | None = None) -> 'Runs':
        """Build the runs of the given lengths."""
        ends = torch.tensor((0, *accumulate(lengths)), dtype=torch.int32)
        return cls(ends.to(device, non_blocking=True), lengths, whole_length)

    @cached_property
    def max_seqlen(self) -> int:
        """The longest run, or what counts as such."""
        return self.bound or max(self.lengths)

    @cached_property
    def equal(self) -> bool:
        """True if all runs have one length, and launches may depend on it."""
        return self.bound is None and min(self.lengths) == max(self.lengths)

    @property
    def whole(self) -> bool:
        """True if nothing is merged: the length follows from the size of the image, and is the dense model's."""
        return self.equal and self.max_seqlen == self.whole_length

    @cached_property
    def index(self) -> Tensor:
        """(T,) int64: the run of each token."""
        runs = torch.arange(len(self.lengths), device=self.cu_seqlens.device)
        return runs.repeat_interleave(self.cu_seqlens.diff(), 0, output_size=sum(self.lengths))

    def spread(self, values: Tensor) -> Tensor:
        """(R, ...) one value a run -> (T, ...) one a token."""
        return values.index_select(0, self.index)


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
