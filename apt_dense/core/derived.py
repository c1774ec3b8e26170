"""Tensors that are made of parameters: made once, and kept as long as the parameters stay as they are."""
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Forgetful(nn.Module):
    """Keeps what follows from parameters in ``_kept``, and forgets it where these may have changed unseen.

    That is with ``train()``, ``eval()`` and a move to another device or type.  Copies and files hold none of it.
    """

    def __init__(self):
        super().__init__()
        self._kept: dict[Hashable, Any] = {}

    def train(self, mode: bool = True) -> 'Forgetful':
        self._kept.clear()
        return super().train(mode)

    def _apply(self, *args, **kwargs) -> 'Forgetful':
        self._kept.clear()
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_kept': {}}


class DerivedTensors(Forgetful):
    """Keeps tensors that follow from parameters, where no gradient is to flow into these.

    A parameter is known by its memory and its version, which every change in place counts up, except for one through
    ``parameter.data``, as averages of weights are written.  So all is forgotten too where a model is put into training
    or evaluation mode, which happens before each validation; after writing through ``.data`` elsewhere, call
    ``eval()``.

    Args:
        most: the number of tensors, beyond which the one that was asked for least recently goes.
    """

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def get(self, key: Hashable, parameters: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
        """What ``make`` returns, or has returned for this key.

        Args:
            key: of the tensor: all that it depends on besides the parameters.
            parameters: what it is made of.
            make: makes it; must not depend on autocast.
        """
        # An inference tensor has no version.
        if _takes_gradients(parameters) or any(parameter.is_inference() for parameter in parameters):
            return make()
        now = stamp(parameters)
        found = self._kept.pop(key, None)
        if found is None or found[0] != now:
            # (An inference tensor could not be used in training later.)
            with torch.inference_mode(False), torch.no_grad():
                # The parameters' memory is kept with it: no other tensor can come to stand there.
                found = (now, make(), [parameter.detach() for parameter in parameters])
        self._kept[key] = found  # the last one now
        if len(self._kept) > self.most:
            del self._kept[next(iter(self._kept))]
        return found[1]


class ProductWeights(DerivedTensors):
    """Parameters as a matrix product takes them: in autocast's type, and with zeros up to another shape.

    Args:
        keep_casts: keep the copies in autocast's type, which it would make in each pass, of parameters into which no
            gradient flows: frozen ones, and all without gradients.  They take half of the parameters' memory again.
    """

    def __init__(self, keep_casts: bool):
        super().__init__(most=32)
        self.keep_casts = keep_casts

    def forward(self, parameter: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """The parameter, or what a product takes instead.

        Args:
            parameter: a weight or a bias.
            shape: with zeros up to here; None for its own.
        """
        shape, dtype = tuple(shape or parameter.shape), product_dtype(parameter)
        keeps = self.keep_casts and dtype != parameter.dtype and not _takes_gradients([parameter])
        if torch.compiler.is_compiling():  # a compiler fuses casts and padding with what is around
            return parameter if shape == tuple(parameter.shape) else pad(parameter, shape, dtype)
        if shape == tuple(parameter.shape) and not keeps:
            return parameter
        return self.get((id(parameter), shape, dtype), [parameter], lambda: pad(parameter, shape, dtype))


def product_dtype(x: Tensor) -> torch.dtype:
    """What a linear layer gives for this input: autocast's type, or its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def pad(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor in another type, with zeros behind it along each axis; one pass over it, and so backwards."""
    if torch.compiler.is_compiling():  # which makes one pass itself
        behind = [item for old, new in zip(x.shape[::-1], shape[::-1], strict=True) for item in (0, new - old)]
        return F.pad(x.to(dtype), behind)
    return _Pad.apply(x, shape, dtype)


class _Pad(torch.autograd.Function):
    """See ``pad``.  (torch's own fills all with zeros first, and changes the type in a pass of its own.)"""

    @staticmethod
    def forward(ctx, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        ctx.shape, ctx.dtype = x.shape, x.dtype
        padded = x.new_empty(shape, dtype=dtype)
        for axis, size in enumerate(x.shape):
            if size < shape[axis]:
                padded.narrow(axis, size, shape[axis] - size).zero_()
        padded[tuple(map(slice, x.shape))].copy_(x)
        return padded

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[tuple(map(slice, ctx.shape))].to(ctx.dtype), None, None


def _takes_gradients(parameters: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)


def stamp(parameters: Sequence[Tensor]) -> tuple:
    """What tells whether parameters are as they were; one that was made in inference mode has no version."""
    return tuple((parameter.data_ptr(), None if parameter.is_inference() else parameter._version)
                 for parameter in parameters)
