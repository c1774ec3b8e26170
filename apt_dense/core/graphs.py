"""The blocks as CUDA graphs: one for each bucket of tokens, because every shape of a pass has their number.

A graph replays all launches of a pass by one call of the host, where these take longer than the GPU's work (one or two
images at 512 px).
"""
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from apt_dense.core.derived import Forgetful, stamp
from apt_dense.core.runs import Runs

WARM_UP = 3  # passes before a capture, as torch advises
OPTIONAL = ('local_rope', 'global_rope', 'size_channels')  # of the inputs


@dataclass(frozen=True)
class PackedInputs:
    """What the blocks take.

    Attributes:
        x: (T, C), packed rows.
        windows, images: the runs.
        local_rope, global_rope: their turns, (T, head_dim / 2) complex; no local ones without windows, none at all for
            a model that does not turn.
        size_channels: how often attention counts each row, see ``BlockTokens``; None for once.
    """
    x: Tensor
    windows: Runs
    images: Runs
    local_rope: Tensor | None
    global_rope: Tensor | None
    size_channels: Tensor | None = None

    @property
    def whole(self) -> bool:
        """True if nothing is merged: the shapes follow from the size of the images."""
        return self.windows.whole and self.images.whole


def pad_to_bucket(inputs: PackedInputs, bucket: int) -> PackedInputs:
    """Add rows up to the next multiple of ``bucket``, one at least, as one run more: nobody attends to it.

    What a kernel is launched for follows from the number of rows and of runs, and from the longest run, which is that
    of an image in which nothing is merged.
    """
    rows = (len(inputs.x) // bucket + 1) * bucket
    more = rows - len(inputs.x)

    def longer(values: Tensor | None) -> Tensor | None:
        return values if values is None else torch.cat([values, values.new_zeros(more, *values.shape[1:])])

    def one_more(runs: Runs) -> Runs:
        ends = torch.cat([runs.cu_seqlens, runs.cu_seqlens.new_full((1,), rows)])
        return Runs(ends, (*runs.lengths, more), bound=max(runs.whole_length or runs.max_seqlen, bucket))

    windows = one_more(inputs.windows)
    images = windows if inputs.images is inputs.windows else one_more(inputs.images)
    return PackedInputs(longer(inputs.x), windows, images, longer(inputs.local_rope), longer(inputs.global_rope),
                        longer(inputs.size_channels))


class _Graph(NamedTuple):
    inputs: list[Tensor]  # that a replay reads
    outputs: list[Tensor]  # that it writes
    replay: Callable[[], None]


class BlockGraphs(Forgetful):
    """Runs blocks over rows that are padded to buckets, and keeps a CUDA graph for each bucket and kind of input.

    Graphs read the parameters where they are, so all are dropped when one of these changes, and with ``train()`` and
    ``eval()``, as ``DerivedTensors``.

    Args:
        bucket: tokens; at 256 there are at most 36 graphs for an image of 1536 px.
    """

    def __init__(self, bucket: int):
        super().__init__()
        self.bucket = bucket
        self._stamp: tuple = ()

    def forward(self, run: Callable[[PackedInputs], list[Tensor]], inputs: PackedInputs, parameters: Sequence[Tensor],
                capturable: bool, kind: Hashable) -> list[Tensor]:
        """What ``run(inputs)`` returns, from padded rows where patches are merged.

        Args:
            run: packed inputs -> packed outputs, (T, C) each.
            inputs: T rows.
            parameters: that ``run`` reads.
            capturable: False where a graph is impossible: on a CPU, or if attention's launches follow from the lengths.
            kind: tells this ``run`` from others, which do something else with equal inputs.
        """
        padded = inputs if inputs.whole else pad_to_bucket(inputs, self.bucket)
        outputs = self._replay(run, padded, parameters, kind) if capturable else run(padded)
        return [output[:len(inputs.x)] for output in outputs]

    def _replay(self, run: Callable, padded: PackedInputs, parameters: Sequence[Tensor],
                kind: Hashable) -> list[Tensor]:
        now = stamp(parameters)
        if now != self._stamp:
            self._kept.clear()
            self._stamp = now
        tensors, key = _tensors(padded), (kind, _key(padded))
        if key not in self._kept:
            self._kept[key] = self._capture(run, padded)
        graph = self._kept[key]
        for static, tensor in zip(graph.inputs, tensors, strict=True):
            static.copy_(tensor)
        graph.replay()
        return [output.clone() for output in graph.outputs]  # the next replay overwrites them

    @staticmethod
    def _capture(run: Callable, padded: PackedInputs) -> _Graph:
        """Capture a pass over memory of its own."""
        static = _with_tensors(padded, [tensor.clone() for tensor in _tensors(padded)])
        device = padded.x.device.type
        # Casts of weights that autocast remembers would be gone when the graph is replayed.
        with torch.autocast(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), False):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    run(static)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = run(static)
        return _Graph(_tensors(static), outputs, graph.replay)


def _tensors(inputs: PackedInputs) -> list[Tensor]:
    return [tensor for tensor in (inputs.x, inputs.windows.cu_seqlens, inputs.images.cu_seqlens,
                                  *(getattr(inputs, name) for name in OPTIONAL)) if tensor is not None]


def _with_tensors(inputs: PackedInputs, tensors: list[Tensor]) -> PackedInputs:
    """The same inputs in other memory, in the order of ``_tensors``."""
    x, windows, images, *others = tensors
    others = dict(zip((name for name in OPTIONAL if getattr(inputs, name) is not None), others, strict=True))
    return replace(inputs, x=x, windows=replace(inputs.windows, cu_seqlens=windows),
                   images=replace(inputs.images, cu_seqlens=images), **others)


def _key(padded: PackedInputs) -> tuple:
    """All that launches follow from."""
    device = padded.x.device
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    shapes = tuple((tensor.shape, tensor.dtype) for tensor in _tensors(padded))
    return shapes, padded.windows.bound, padded.images.bound, device, autocast, torch.is_inference_mode_enabled()
