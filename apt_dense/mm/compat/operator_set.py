"""Where RoIAlign, NMS and soft-NMS come from.

mmcv keeps its compiled operators in the module ``mmcv._ext``, which mmcv-lite lacks.  A module of that name stands in
for it, with the three operators that this project's detectors use: from numpy and torch on a CPU; on a GPU RoIAlign and
NMS from torchvision and soft-NMS from torch.  Every other operator is mmcv's compiled one where there is one, and
otherwise can be imported and refuses to run.

The environment variable APT_DENSE_OPS chooses: 'plain' (the default) for these, 'compiled' for all of mmcv's own.
"""
import functools
import importlib
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from apt_dense.mm.compat import plain_nms, plain_roi_align, plain_soft_nms

VARIABLE = 'APT_DENSE_OPS'
CHOICES = ('plain', 'compiled')
NAME = 'mmcv._ext'
COMPILE = f'compile mmcv (MMCV=compiled make setup) and set {VARIABLE}=compiled'


class PlainOperators(ModuleType):
    """What stands for ``mmcv._ext``; its functions have the arguments that ``mmcv.ops`` gives them.

    Args:
        compiled: mmcv's compiled operators, or a text: why there are none.
    """

    def __init__(self, compiled: ModuleType | str):
        super().__init__(NAME)
        self.__spec__ = ModuleSpec(NAME, None)
        self.compiled = compiled

    def __getattr__(self, name: str) -> Any:
        """Every other operator, and what mmcv tells of its compiler."""
        if name.startswith('__'):
            raise AttributeError(name)
        if isinstance(self.compiled, ModuleType):
            return getattr(self.compiled, name)
        if name in ('get_compiler_version', 'get_compiling_cuda_version'):
            return lambda: 'not available'
        return functools.partial(self._refuse, name)

    def _refuse(self, name: str, *args: Any, **kwargs: Any) -> NoReturn:
        why = f'. Here {self.compiled}' if isinstance(self.compiled, str) else ''
        raise NotImplementedError(f"the operator {name} is one of mmcv's compiled ones: {COMPILE}{why}")

    def nms(self, boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
        """See ``plain_nms.nms``."""
        if boxes.device.type == 'cpu':
            return plain_nms.nms(boxes, scores, iou_threshold, offset)
        # torchvision knows no offset: longer by it, boxes have the sides that mmcv computes.
        longer = boxes + boxes.new_tensor([0, 0, offset, offset]) if offset else boxes
        return gpu_operators().nms(longer, scores, iou_threshold)

    def softnms(self, boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float, min_score: float,
                method: int, offset: int) -> Tensor:
        """See ``plain_soft_nms.soft_nms``: writes the boxes into ``dets``, returns the indices."""
        found, index = plain_soft_nms.soft_nms(boxes, scores, iou_threshold, sigma, min_score,
                                               plain_soft_nms.METHODS[method], offset)
        dets[:len(found)] = found
        return index

    def roi_align_forward(self, input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor,
                          **settings: Any) -> None:
        """Write what ``pool`` returns into ``output``."""
        output.copy_(self._pool_as_told(input, rois, **settings))

    def roi_align_backward(self, grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor,
                           grad_input: Tensor, **settings: Any) -> None:
        """Write the gradient of ``pool`` into ``grad_input``."""
        with torch.enable_grad():
            maps = torch.zeros_like(grad_input, requires_grad=True)
            pooled = self._pool_as_told(maps, rois, **settings)
        grad_input.copy_(*torch.autograd.grad(pooled, maps, grad_output))

    def _pool_as_told(self, maps: Tensor, rois: Tensor, aligned_height: int, aligned_width: int, spatial_scale: float,
                      sampling_ratio: int, pool_mode: int, aligned: bool) -> Tensor:
        if pool_mode == 0:
            self._refuse("roi_align with pool_mode='max'")
        return self.pool(maps, rois, (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned)

    def pool(self, maps: Tensor, rois: Tensor, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int,
             aligned: bool) -> Tensor:
        """See ``plain_roi_align.roi_align``; here also on a GPU."""
        if maps.device.type == 'cpu':
            return plain_roi_align.roi_align(maps, rois, output_size, spatial_scale, sampling_ratio, aligned)
        rois = rois.to(maps.dtype)
        return gpu_operators().roi_align(maps, rois, spatial_scale, *output_size, sampling_ratio, aligned)


def provide_operators() -> None:
    """Put the operators that are chosen where mmcv looks for them, also if it has already been imported.

    Raises:
        ValueError: for a value of APT_DENSE_OPS that is none.
        ImportError: for 'compiled' where mmcv has no compiled operators.
    """
    if plain_operators() is not None:
        return
    choice = os.environ.get(VARIABLE, CHOICES[0])
    if choice not in CHOICES:
        raise ValueError(f'{VARIABLE}={choice!r}: choose one of {CHOICES}')
    importlib.import_module('mmcv')  # that it is not there is another error
    try:
        compiled = importlib.import_module(NAME)
    except ImportError as error:
        compiled = f'mmcv has none that load ({error})'
    if choice == 'plain':
        sys.modules[NAME] = PlainOperators(compiled)
        for name in ('nms', 'roi_align'):  # if they have been imported, they keep the compiled ones
            if module := sys.modules.get(f'mmcv.ops.{name}'):
                module.ext_module = sys.modules[NAME]
    elif isinstance(compiled, str):
        raise ImportError(f'{VARIABLE}=compiled, but {compiled}: unset it, or compile them: MMCV=compiled make setup')


def plain_operators() -> PlainOperators | None:
    """What stands for ``mmcv._ext``; None if that is mmcv's own."""
    module = sys.modules.get(NAME)
    return module if isinstance(module, PlainOperators) else None


@functools.cache
def gpu_operators() -> Any:
    """torchvision's operators, whose kernels for GPUs load.

    Raises:
        ImportError: if they do not, saying why and what to do.
    """
    try:
        import torchvision
        for operator in (torch.ops.torchvision.nms, torch.ops.torchvision.roi_align):
            if not operator.default.has_kernel_for_dispatch_key(torch._C.DispatchKey.CUDA):
                raise ImportError(f'torchvision {torchvision.__version__} has none for GPUs')
    except (AttributeError, ImportError, OSError, RuntimeError) as error:
        raise ImportError('RoIAlign and NMS on a GPU are those of the torchvision that belongs to torch '
                          f'{torch.__version__}, and they do not load ({error}). Install it (make setup does), or '
                          f'{COMPILE}') from error
    return torch.ops.torchvision


def describe_operators(device: str) -> str:
    """One line for the log: where the operators on a device, 'cpu' or 'cuda', come from.

    Raises:
        ImportError: if there are none for it.
    """
    if plain_operators() is None:
        has_gpu = importlib.import_module('mmcv.ops').get_compiling_cuda_version() != 'not available'
        if device != 'cpu' and not has_gpu:
            raise ImportError(f"{VARIABLE}=compiled, but mmcv's operators are compiled for CPUs only: unset it, or "
                              'compile them again where a GPU is visible: uninstall mmcv, MMCV=compiled make setup')
        return f"RoIAlign, NMS and soft-NMS: mmcv's compiled operators ({VARIABLE}=compiled)"
    if device == 'cpu':
        return 'RoIAlign, NMS and soft-NMS: plain numpy and torch'
    gpu_operators()
    return f'RoIAlign and NMS: torchvision {sys.modules["torchvision"].__version__}; soft-NMS: plain torch'
