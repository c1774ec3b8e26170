"""Operators and heads that must not see half precision or strides."""
from collections.abc import Callable
from typing import Any

import torch
from mmcv.ops import RoIAlign
from mmcv.ops.nms import NMSop, SoftNMSop
from torch import Tensor, nn

from apt_dense.mm.compat.replacing import replace_once


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
        replace_once(op, 'forward', make, static=True)


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
