"""Tensors that are made of parameters: made once, and kept as long as the parameters stay as they are."""
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn


class DerivedTensors(nn.Module):
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
        self._kept: dict[Hashable, tuple[tuple, Tensor]] = {}

    def get(self, key: Hashable, parameters: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
        """What ``make`` returns, or has returned for this key.

        Args:
            key: of the tensor: all that it depends on besides the parameters.
            parameters: what it is made of.
            make: makes it; must not depend on autocast.
        """
        flows = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)
        # A compiler fuses what is made; an inference tensor has no version.
        if flows or torch.compiler.is_compiling() or any(parameter.is_inference() for parameter in parameters):
            return make()
        stamp = _stamp(parameters)
        found = self._kept.pop(key, None)
        if found is None or found[0] != stamp:
            # (An inference tensor could not be used in training later.)
            with torch.inference_mode(False), torch.no_grad():
                # The parameters' memory is kept with it: no other tensor can come to stand there.
                found = (stamp, make(), [parameter.detach() for parameter in parameters])
        self._kept[key] = found  # the last one now
        if len(self._kept) > self.most:
            del self._kept[next(iter(self._kept))]
        return found[1]

    def train(self, mode: bool = True) -> 'DerivedTensors':
        self._kept.clear()
        return super().train(mode)

    def _apply(self, *args, **kwargs) -> 'DerivedTensors':
        self._kept.clear()
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_kept': {}}  # a copy, or a file, holds none


def _stamp(parameters: Sequence[Tensor]) -> tuple:
    """What tells whether parameters are as they were."""
    return tuple((parameter.data_ptr(), parameter._version) for parameter in parameters)
