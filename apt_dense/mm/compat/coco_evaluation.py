"""COCO's evaluation in C++."""
from collections.abc import Callable
from typing import Any

from pycocotools.coco import COCO

from apt_dense.mm.compat.replacing import replace_once


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
