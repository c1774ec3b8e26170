"""Fixes that the OpenMMLab packages need on current torch, numpy and matplotlib, and on machines without a GPU.

Each fix is one function: why it is there, and when it can be deleted.  Importing this module applies those that only
repair what would fail or be wrong otherwise.  Called by name are ``keep_rois_in_float32`` and
``keep_anchors_in_float32``, because they import mmdet, ``setup_cpu_ddp`` and ``filter_library_warnings``, because they
are a program's business.  A fix looks at what it finds, never at a distribution's name or version, so that the onedl-*
forks work too.  Applying a fix twice changes nothing.

The module must be imported before a checkpoint is loaded: put ``apt_dense.mm`` into a config's ``custom_imports``.
"""
import codecs
import functools
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mmengine.runner.checkpoint
import numpy as np
import torch
from mmcv.ops import RoIAlign
from mmcv.ops.nms import NMSop, SoftNMSop
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.visualization import Visualizer
from torch import Tensor, nn

from apt_dense.mm.data.load_picture import as_picture

# What the libraries say about their own code; no user can act on it.  Regular expressions, matched at the start.
LIBRARY_WARNINGS = (
    r'To copy construct from a tensor',  # mmdet's mask head, once a picture
    r'``build_loss`` would be deprecated',  # mmseg's own decode heads call it
    r'`reduce_zero_label` will be deprecated',  # mmseg's datasets pass it to LoadAnnotations themselves
    r'The draw is False, it means that the hook for visualization',  # mmseg's hook, which draws only for --show-dir
    r'Default ``avg_non_ignore`` is False',  # both packages; False is what the published models were trained with
    r'torch\.utils\.checkpoint: the use_reentrant parameter',  # the libraries' backbones
    r'`broadcast_buffers` is deprecated',  # mmengine's DDP wrapper
)
# The second is what a user sets who trusts every file; it must not undo the first.
TORCH_LOAD_SWITCHES = ('TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD')
LIBRARY_LOG_LINES = ('"FileClient" will be deprecated', '"HardDiskBackend" is the alias')  # mmengine's own hooks


def apply() -> None:
    """Apply every fix that is not called by name.  Importing the module does it; doing it again changes nothing."""
    allow_mmengine_checkpoints()
    load_checkpoints_safely()
    run_nms_in_float32()
    repair_roi_align()
    keep_drawing_limits()


def allow_mmengine_checkpoints() -> None:
    """Let torch.load(weights_only=True), the default since torch 2.6, read the checkpoints that mmengine writes.

    They hold the log's HistoryBuffers, numpy arrays and numpy scalars.  All else is refused as before: a checkpoint
    cannot run code.

    Delete when mmengine saves nothing but tensors and builtin types, or registers these types itself, with a
    narrower getattr than the builtin one.
    """
    torch.serialization.add_safe_globals(_checkpoint_globals())


@functools.cache
def _checkpoint_globals() -> list[Callable]:
    """What a checkpoint may name beside torch's own list.

    The two functions that numpy pickles through are called numpy.core.multiarray before numpy 2 and
    numpy._core.multiarray since; a file from either must load on either.  torch learned (object, name) pairs only after
    2.4, so each name gets a function that carries it.
    """
    reconstruct, scalar = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    modules = ('numpy.core.multiarray', 'numpy._core.multiarray')
    return [
        HistoryBuffer, np.ndarray, np.dtype,
        codecs.encode,  # array data; on torch's own list by 2.6
        *{type(np.dtype(code)) for code in '?bhilqBHILQefd'},
        *(_under_name(reconstruct, module, '_reconstruct') for module in modules),
        *(_under_name(scalar, module, 'scalar') for module in modules),
        _under_name(_history_statistic, 'builtins', 'getattr'),
    ]


def _under_name(function: Callable, module: str, name: str) -> Callable:
    """A function that does what ``function`` does and that torch finds as ``module.name``."""

    def named(*args: Any) -> Any:
        return function(*args)

    named.__module__, named.__name__, named.__qualname__ = module, name, name
    return named


def _history_statistic(owner: Any, name: Any) -> Callable:
    """Stand in for getattr inside a checkpoint: HistoryBuffer's four statistics; the builtin would reach everything."""
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed in a checkpoint')


def load_checkpoints_safely() -> None:
    """Make every loader of mmengine refuse code in a checkpoint: local files, addresses, buckets, on any torch.

    Concerns training, resuming, testing, and the packages' init_detector, init_model and inferencers, which all load
    through CheckpointLoader.  Without it mmengine leaves the choice to torch, whose default is unsafe before 2.6 and
    for addresses (torch.hub) on every version; onedl-mmengine loads a refused file again with weights_only=False.

    The text under meta['config'], of mmengine's early days, is left out: on resuming, mmengine would execute it as
    Python to learn the number of GPUs.

    Delete when mmengine passes weights_only=True itself, and no longer runs that text.
    """

    def make(original: Callable) -> Callable:

        def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
            with _only_safe_loading():
                checkpoint = original(*args, **kwargs)
            meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
            if isinstance(meta, dict):
                meta.pop('config', None)
            return checkpoint

        return load_checkpoint

    _replace_once(mmengine.runner.checkpoint.CheckpointLoader, 'load_checkpoint', make, static=True)


@contextmanager
def _only_safe_loading() -> Iterator[None]:
    """torch.load with weights_only=True, whatever it is asked for: torch's own switch."""
    before = {name: os.environ.pop(name, None) for name in TORCH_LOAD_SWITCHES}
    os.environ[TORCH_LOAD_SWITCHES[0]] = '1'
    try:
        yield
    finally:
        del os.environ[TORCH_LOAD_SWITCHES[0]]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def run_nms_in_float32() -> None:
    """Run mmcv's NMS and soft-NMS in float32, whatever autocast made of the scores.

    mmcv reads the memory of both tensors as float32 on every device; other types raise.  Soft-NMS returns float32.

    Delete when mmcv's nms accepts bfloat16 scores beside float32 boxes.
    """

    def make(original: Callable) -> Callable:

        def forward(ctx: Any, boxes: Tensor, scores: Tensor, *args: Any) -> Any:
            return original(ctx, boxes.float(), scores.float(), *args)

        return forward

    for op in (NMSop, SoftNMSop):
        _replace_once(op, 'forward', make, static=True)


def repair_roi_align() -> None:
    """Let mmcv's RoIAlign module take bfloat16 maps and maps that are not contiguous.

    It has no bfloat16 kernel on any device: such maps are pooled in float32, and the result is bfloat16 again.  Other
    types are left to it, half precision included.  Of maps that are not contiguous (after a LayerNorm over the
    channels, say) it silently pools wrong values, because its kernels ignore strides.

    Delete when mmcv dispatches RoIAlign on bfloat16, and checks or makes its input contiguous.
    """

    def make(original: Callable) -> Callable:

        def forward(self: nn.Module, input: Tensor, rois: Tensor) -> Tensor:
            if input.dtype != torch.bfloat16:
                return original(self, input.contiguous(), rois)
            return original(self, input.contiguous().float(), rois.float()).to(input.dtype)

        return forward

    _replace_once(RoIAlign, 'forward', make)


def keep_rois_in_float32() -> None:
    """Keep mmdet's RoI extractor from rounding boxes to half precision.

    From 1024 px on, bfloat16 has steps of 8 px and float16 of 1 px.

    It converts the boxes to the type of the maps; so the maps are converted instead, and the result back.

    Delete when SingleRoIExtractor.forward no longer has ``rois.type_as(feats[0])``.
    """
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor  # segmentation runs without mmdet

    def make(original: Callable) -> Callable:

        def forward(self: nn.Module, feats: tuple[Tensor, ...], rois: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if feats[0].dtype not in (torch.bfloat16, torch.float16):
                return original(self, feats, rois, *args, **kwargs)
            wide = tuple(feat.float() for feat in feats)
            return original(self, wide, rois, *args, **kwargs).to(feats[0].dtype)

        return forward

    _replace_once(SingleRoIExtractor, 'forward', make)


def keep_anchors_in_float32() -> None:
    """Keep mmdet's dense heads from rounding anchors, and with them proposals, to half precision.

    In testing, and for the proposals in training, they make anchors of the type of the scores, which autocast made
    bfloat16 (steps of 8 px from 1024 px on) or float16 (1 px); numpy, and with it COCO's metric, knows no bfloat16.  So
    scores and deltas are converted to float32 first.

    Delete when BaseDenseHead.predict_by_feat has no ``dtype=cls_scores[0].dtype``.
    """
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead  # segmentation runs without mmdet

    def make(original: Callable) -> Callable:

        def predict_by_feat(self: nn.Module, cls_scores: list[Tensor], bbox_preds: list[Tensor], *args: Any,
                            **kwargs: Any) -> list:
            scores, deltas = ([level.float() for level in levels] for levels in (cls_scores, bbox_preds))
            return original(self, scores, deltas, *args, **kwargs)

        return predict_by_feat

    _replace_once(BaseDenseHead, 'predict_by_feat', make)


def keep_drawing_limits() -> None:
    """Stop matplotlib from rescaling the picture when a drawn shape leaves it.

    draw_points does so on every version, the other shapes since matplotlib 3.11.

    Delete when mmengine's Visualizer.set_image switches autoscale off itself.
    """

    def make(original: Callable) -> Callable:

        def set_image(self: Visualizer, image: np.ndarray) -> None:
            original(self, image)
            self.ax_save.autoscale(False)

        return set_image

    _replace_once(Visualizer, 'set_image', make)


@OPTIM_WRAPPERS.register_module(force=True)
class BF16OptimWrapper(OptimWrapper):
    """Forward passes under bfloat16 autocast, on a CPU too; arguments are OptimWrapper's.

    bfloat16 has float32's range, so no loss scaler is needed.

    Delete when mmengine's AmpOptimWrapper(dtype='bfloat16') no longer asserts a GPU.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast on mmengine's device, inside OptimWrapper's own context (gradient accumulation)."""
        with super().optim_context(model), torch.autocast(get_device(), dtype=torch.bfloat16):
            yield


def setup_cpu_ddp(cfg: Config) -> None:
    """Prepare data-parallel training on CPUs, before the runner is built; nothing happens on other devices.

    mmengine calls torch.cuda.set_device for every launcher and gives DDP a GPU's index: here the gloo group is made
    first, which mmengine then keeps, and ``cfg.model_wrapper_cfg`` gets ``device_ids=None`` and a wrapper whose SyncBN
    works on CPUs (``sync_bn.CPUDistributedDataParallel``).

    Delete when mmengine's init_dist and wrap_model look at the device.

    Raises:
        ValueError: for a launcher other than 'none' and 'pytorch' on a CPU.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none' or get_device() != 'cpu':
        return
    if launcher != 'pytorch':
        raise ValueError(f'launcher {launcher!r} without a GPU: only torchrun works on CPUs, use --launcher pytorch '
                         '(tools/dist_train.sh)')
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    # mmengine reads find_unused_parameters from the config's top level only where there is no model_wrapper_cfg.
    defaults = {
        'type': 'CPUDistributedDataParallel', 'device_ids': None, 'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False)}
    cfg.model_wrapper_cfg = {**defaults, **(cfg.get('model_wrapper_cfg') or {})}


def draw_on_any_picture(visualizer: type[Visualizer]) -> None:
    """Let a package's visualiser draw on arrays that are grey, have alpha or other types, as the models take them.

    mmsegmentation's stops at grey ones, and both wrap 16-bit values around.

    Delete when add_datasample takes such arrays.
    """

    def make(original: Callable) -> Callable:

        def add_datasample(self: Visualizer, name: str, image: np.ndarray, *args: Any, **kwargs: Any) -> None:
            return original(self, name, as_picture(image, name, bits=16), *args, **kwargs)

        return add_datasample

    _replace_once(visualizer, 'add_datasample', make)


def filter_library_warnings(logger: logging.Logger | None = None) -> None:
    """Hide what the libraries say about their own code, message by message; every other warning stays.

    Not called on import: which warnings a process shows is for the program to say, not for a library.

    Args:
        logger: the runner's; mmengine logs some of its deprecations instead of warning.
    """
    for message in LIBRARY_WARNINGS:
        warnings.filterwarnings('ignore', message=message)
    if logger is not None:
        logger.addFilter(_is_not_library_noise)


def log_core_to(logger: logging.Logger) -> None:
    """Let what the core says by Python's logging, such as the kernel that it takes, appear in a run's log.

    mmengine's loggers stand beside Python's, and hear nothing of them.  The next call takes this one's place.
    """
    core = logging.getLogger('apt_dense.core')
    core.setLevel(logging.INFO)
    core.handlers = list(logger.handlers)


def _is_not_library_noise(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(LIBRARY_LOG_LINES)


def _replace_once(owner: Any, name: str, make: Callable[[Callable], Callable], static: bool = False) -> None:
    """Set owner.name to make(owner.name), unless it already is a replacement."""
    original = getattr(owner, name)
    if hasattr(original, 'replaced_by_apt_dense'):
        return
    replacement = functools.wraps(original)(make(original))
    replacement.replaced_by_apt_dense = True
    setattr(owner, name, staticmethod(replacement) if static else replacement)


apply()
