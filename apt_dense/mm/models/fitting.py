"""Do backbone, neck and heads fit?  They are run on a map of zeros before the first picture is read."""
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apt_dense.core.vit import PackedViT
from apt_dense.mm.errors import DataError

SIDE = 4  # cells of a map


@torch.no_grad()
def check_model_fits(model: nn.Module) -> None:
    """Check that a detector's or a segmentor's parts take what those before them give.

    What a part is not known to take is passed over: parts after a backbone of another project, heads that are neither
    anchor heads, those of Cascade R-CNN, UPerHead nor FCNHead.

    Raises:
        DataError: naming the part, what it gets and what it says of that.
    """
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, PackedViT) or (first := next(model.parameters())).is_meta:
        return
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        maps = tuple(first.new_zeros(1, backbone.embed_dims, SIDE, SIDE) for _ in backbone.out_indices)
        before = 'backbone'
        if getattr(model, 'neck', None) is not None:
            maps, before = _run(model.neck, 'neck', maps, before), 'neck'
        _check_detector(model, maps, before)
        for name in ('decode_head', 'auxiliary_head'):
            heads = getattr(model, name, None)
            many = isinstance(heads, nn.ModuleList)
            for index, head in enumerate(heads if many else [heads]):
                if _is_one(head, 'UPerHead', 'FCNHead'):
                    _run(head, f'{name}.{index}' if many else name, maps, before)
    finally:
        for module, mode in training.items():
            module.training = mode


def _check_detector(model: nn.Module, maps: Sequence[Tensor], before: str) -> None:
    head, roi_head = getattr(model, 'rpn_head', None), getattr(model, 'roi_head', None)
    if _is_one(head, 'AnchorHead'):
        _run(head, 'rpn_head', maps, before)
        levels = head.prior_generator.num_levels
        if levels != len(maps):
            raise DataError(f'model.rpn_head.anchor_generator.strides has {levels} strides, and model.{before} gives '
                            f'{_described(maps)}: give as many')
    if _is_one(roi_head, 'CascadeRoIHead'):
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
        return (call or part)(maps)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a layer says of a shape that it does not take
        raise DataError(f'model.{key} ({type(part).__name__}) does not take what model.{before} gives, '
                        f'{_described(maps)}: {" ".join(str(error).split())}. Set its in_channels (embed_dim), '
                        'in_index or num_outs to that') from error


def _is_one(part: nn.Module | None, *names: str) -> bool:
    """Whether a part is of one of these classes, of libraries that need not be installed."""
    return any(base.__name__ in names for base in type(part).__mro__)


def _described(maps: Sequence[Tensor]) -> str:
    channels = sorted({item.shape[1] for item in maps})
    return f'{len(maps)} map{"s" * (len(maps) > 1)} of {" and ".join(map(str, channels))} channels'
