"""Operators and heads that must not see half precision or strides."""
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from apt_dense.mm.compat.operator_set import plain_operators
from apt_dense.mm.compat.plain_soft_nms import METHODS, soft_nms_of_classes
from apt_dense.mm.compat.replacing import replace_in_package, replace_once


def run_nms_in_float32() -> None:
    """Run mmcv's NMS and soft-NMS in float32, whatever autocast made of the scores.

    mmcv reads the memory of both tensors as float32 on every device; other types raise.  Soft-NMS returns float32.

    Delete when mmcv's nms accepts bfloat16 scores beside float32 boxes.
    """
    from mmcv.ops.nms import NMSop, SoftNMSop  # after provide_operators

    def make(original: Callable) -> Callable:

        def forward(ctx: Any, boxes: Tensor, scores: Tensor, *args: Any) -> Any:
            return original(ctx, boxes.float(), scores.float(), *args)

        return forward

    for op in (NMSop, SoftNMSop):
        replace_once(op, 'forward', make, static=True)


def repair_roi_align() -> None:
    """Let mmcv's RoIAlign module take bfloat16 maps, maps that are not contiguous, and the plain operator.

    It has no bfloat16 kernel on any device: such maps are pooled in float32, and the result is bfloat16 again.  Other
    types are left to it, half precision included.  Of maps that are not contiguous (after a LayerNorm over the
    channels, say) its compiled kernels, which ignore strides, silently pool wrong values.  The plain operator takes
    maps with the channels last as they are, and keeps its matrices for the backward pass, for which
    ``RoIAlignFunction`` has no place.

    Delete when mmcv dispatches RoIAlign on bfloat16, and checks or makes its input contiguous.
    """
    from mmcv.ops import RoIAlign  # after provide_operators

    def make(original: Callable) -> Callable:

        def forward(self: nn.Module, input: Tensor, rois: Tensor) -> Tensor:
            if input.dtype == torch.bfloat16:
                return forward(self, input.float(), rois.float()).to(input.dtype)
            plain = plain_operators()
            if plain is None or self.pool_mode != 'avg' or self.use_torchvision:
                return original(self, input.contiguous(), rois)
            return plain.pool(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

        return forward

    replace_once(RoIAlign, 'forward', make)


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

    replace_once(SingleRoIExtractor, 'forward', make)


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

    replace_once(BaseDenseHead, 'predict_by_feat', make)


def suppress_all_classes_at_once() -> None:
    """Let mmdet's multiclass_nms run soft-NMS on all classes together, where the plain operators are in use.

    It hands each class's boxes to mmcv's, one class after the other, which computes their overlaps anew for each; on a
    GPU it first copies them to the host.  Scores differ by rounding: mmcv shifts the boxes of a class by its number
    times the image's size.

    Not needed any more when mmcv's soft-NMS takes all classes, on every device.
    """
    importlib.import_module('mmdet.models')  # all who have imported the function; segmentation runs without mmdet

    def make(original: Callable) -> Callable:

        def multiclass_nms(multi_bboxes: Tensor, multi_scores: Tensor, score_thr: float, nms_cfg: dict,
                           max_num: int = -1, score_factors: Tensor | None = None, return_inds: bool = False,
                           box_dim: int = 4) -> tuple:
            settings = _soft_nms_settings(nms_cfg)
            candidates = multi_scores[:, :-1] > score_thr
            number = int(candidates.sum())
            if plain_operators() is None or settings is None or multi_bboxes.shape[1] != 4 or not number:
                return original(multi_bboxes, multi_scores, score_thr, nms_cfg, max_num, score_factors, return_inds,
                                box_dim)
            boxes, scores = multi_bboxes.float(), multi_scores[:, :-1].float()
            if score_factors is not None:
                scores = scores * score_factors.view(-1, 1)
            # mmcv goes through the classes one by one from here on, and then takes the best box of each.
            spare_each = number >= settings.pop('split_thr')
            labels, index, values = soft_nms_of_classes(boxes, torch.where(candidates, scores, -1.0).t().contiguous(),
                                                        spare_each=spare_each, **settings)
            labels, index, values = (part[:max_num] if max_num > 0 else part for part in (labels, index, values))
            found = torch.cat([boxes[index], values[:, None]], 1), labels, index * scores.shape[1] + labels
            return found if return_inds else found[:2]

        return multiclass_nms

    replace_in_package('mmdet', 'multiclass_nms', make)


def _soft_nms_settings(nms_cfg: dict) -> dict | None:
    """The arguments of ``soft_nms_of_classes`` in mmcv's words, and split_thr; None where it does not serve."""
    settings = dict(iou_threshold=0.3, sigma=0.5, min_score=1e-3, method='linear', offset=0, split_thr=10000)
    given = {name: value for name, value in (nms_cfg or {}).items() if name != 'type'}
    if (nms_cfg or {}).get('type') != 'soft_nms' or not given.keys() <= settings.keys():
        return None
    settings |= given
    return settings if settings['min_score'] > 0 and settings['method'] in METHODS else None
