"""COCO's evaluation in C++, and masks for it."""
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from apt_dense.mm.compat.replacing import replace_in_package, replace_once


def evaluate_coco_faster() -> None:
    """Let mmdet's CocoMetric match and accumulate by faster-coco-eval, where it is installed; same figures and log.

    One rank evaluates while all others wait: pycocotools takes minutes for the thousands of detections of the published
    setting, and longer than NCCL's patience.  The summary stays pycocotools', because the other one takes its AP at the
    largest number of detections, and this one at 100.

    Not needed any more when mmdet evaluates with faster-coco-eval itself.
    """
    try:
        from faster_coco_eval.core.faster_eval_api import COCOeval_faster
    except ImportError:
        return
    from mmdet.evaluation.metrics import coco_metric  # segmentation runs without mmdet

    def make(original: type) -> Callable:

        class Faster(COCOeval_faster):
            summarize = original.summarize

            def __init__(self, *args: Any):
                super().__init__(*args, print_function=print)

        def COCOeval(cocoGt: COCO, cocoDt: COCO, iouType: str) -> Any:
            return (Faster if _has_whole_ids(cocoGt) and _has_whole_ids(cocoDt) else original)(cocoGt, cocoDt, iouType)

        return COCOeval

    replace_once(coco_metric, 'COCOeval', make)


def _has_whole_ids(coco: COCO) -> bool:
    """Whether the ids are Python's whole numbers from 1 on: of others C++ refuses some, and counts others as 0."""
    return all(type(one) is int and one > 0 for ids in (coco.imgs, coco.cats, coco.anns) for one in ids)


def encode_masks_faster() -> None:
    """Let mmdet encode bitmaps by the columns that they cover; of the whole picture it copies each in column order.

    Not needed any more when mmdet, or pycocotools, does so.
    """
    importlib.import_module('mmdet.evaluation')  # all who have imported the function; segmentation runs without mmdet

    def make(original: Callable) -> Callable:

        def encode_mask_results(mask_results: Sequence) -> list[dict]:
            return [encode_mask(mask) if mask.dtype == bool else original([mask])[0] for mask in mask_results]

        return encode_mask_results

    replace_in_package('mmdet', 'encode_mask_results', make)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Encode a bitmap (H, W) of bool as compressed RLE: what pycocotools' ``encode`` gives.

    COCO's runs go down the columns, one after the other; the first is of background.
    """
    height, width = mask.shape
    columns = np.flatnonzero(mask.any(0))
    first, last = (columns[0], columns[-1] + 1) if len(columns) else (0, 0)
    covered = mask[:, first:last].T.ravel()
    turns = np.flatnonzero(np.diff(covered, prepend=False, append=False)) + first * height
    runs = np.diff(turns, prepend=0, append=height * width)
    if len(turns) and not runs[-1]:  # the last pixel is covered
        runs = runs[:-1]
    return coco_mask.frPyObjects(dict(size=[height, width], counts=runs.tolist()), height, width)
