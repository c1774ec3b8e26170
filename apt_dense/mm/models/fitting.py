"""Do backbone, neck and heads fit?  They are run on a map of zeros before the first picture is read."""
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from apt_dense.core.vit import PackedViT
from apt_dense.mm.errors import DataError

SIDE = 4  # cells of a map
# Classes whose forward is known: those that derive from them may take something else.
HEADS = ('UPerHead', 'FCNHead', 'RPNHead', 'RetinaHead', 'FCOSHead', 'ATSSHead', 'GFLHead')
ROI_HEADS = ('CascadeRoIHead', 'EVA02CascadeRoIHead')
PACKAGES = ('apt_dense', 'mmdet', 'mmseg')


@torch.no_grad()
def check_model_fits(model: nn.Module) -> None:
    """Check that a detector's or a segmentor's parts take what those before them give.

    What a part is not known to take is passed over: all after a backbone or a neck of the user, heads that are not of
    HEADS or ROI_HEADS, models whose weights are sharded.

    Raises:
        DataError: naming the part, what it gets and what it says of that.
    """
    backbone = getattr(model, 'backbone', None)
    if not (isinstance(backbone, PackedViT) and _is_known(backbone)) or next(model.parameters()).is_meta:
        return
    neck = getattr(model, 'neck', None)
    if neck is not None and not _is_known(neck):
        return
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return
    training = {module: module.training for module in model.modules()}
    for module in training:
        module.training = False  # train() may do more in a module of the user
    try:
        device = next(model.parameters()).device
        maps = tuple(torch.zeros(1, backbone.embed_dims, SIDE, SIDE, device=device) for _ in backbone.out_indices)
        before = 'backbone'
        if neck is not None:
            maps, before = _run(neck, 'neck', maps, before), 'neck'
        for name in ('rpn_head', 'bbox_head', 'decode_head', 'auxiliary_head'):
            heads = getattr(model, name, None)
            many = isinstance(heads, nn.ModuleList)
            for index, head in enumerate(heads if many else [heads]):
                if type(head).__name__ in HEADS and _is_known(head):
                    _check_head(head, f'{name}.{index}' if many else name, maps, before)
        _check_roi_head(getattr(model, 'roi_head', None), maps, before)
    finally:
        for module, mode in training.items():
            module.training = mode


def _check_head(head: nn.Module, key: str, maps: Sequence[Tensor], before: str) -> None:
    _run(head, key, maps, before)
    generator = getattr(head, 'prior_generator', None)
    if generator is not None and generator.num_levels != len(maps):
        raise DataError(f'model.{key} has {generator.num_levels} strides (anchor_generator.strides), and '
                        f'model.{before} gives {_described(maps)}: give as many')


def _check_roi_head(roi_head: nn.Module | None, maps: Sequence[Tensor], before: str) -> None:
    if type(roi_head).__name__ in ROI_HEADS and _is_known(roi_head):
        of_stages = {'roi_head.stage_loss_weights': roi_head.stage_loss_weights, 'train_cfg.rcnn': roi_head.train_cfg}
        for key, values in of_stages.items():
            if values is not None and len(values) != roi_head.num_stages:
                raise DataError(f'model.{key} has {len(values)} entries, and model.roi_head.num_stages is '
                                f'{roi_head.num_stages}: give one for each stage')
        rois = maps[0].new_tensor([[0, 0, 0, 8, 8]])
        for stage in range(roi_head.num_stages):
            _run(roi_head.bbox_head[stage], f'roi_head.bbox_head.{stage}', maps, before,
                 lambda maps, stage=stage: roi_head._bbox_forward(stage, maps, rois))
            if roi_head.with_mask:
                _run(roi_head.mask_head, 'roi_head.mask_head', maps, before,
                     lambda maps, stage=stage: roi_head._mask_forward(stage, maps, rois))


def _run(part: nn.Module, key: str, maps: Sequence[Tensor], before: str, call: Callable[..., Any] | None = None) -> Any:
    try:
        dtype = next((parameter.dtype for parameter in part.parameters()), torch.float32)
        return (call or part)(tuple(item.to(dtype) for item in maps))
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a layer says of a shape that it does not take
        raise DataError(f'model.{key} ({type(part).__name__}) does not take what model.{before} gives, '
                        f'{_described(maps)}: {" ".join(str(error).split())}. Set its in_channels (embed_dim), '
                        'in_index or num_outs to that') from error


def _is_known(part: nn.Module) -> bool:
    """Whether a part is of this project or of OpenMMLab's, not of the user."""
    return type(part).__module__.partition('.')[0] in PACKAGES


def _described(maps: Sequence[Tensor]) -> str:
    channels = sorted({item.shape[1] for item in maps})
    return f'{len(maps)} map{"s" * (len(maps) > 1)} of {" and ".join(map(str, channels))} channels'
