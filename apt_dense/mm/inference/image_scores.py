"""A score for each image, by the matching of the metric of the whole dataset."""
import io
import tempfile
from contextlib import redirect_stdout

import numpy as np
from mmengine.evaluator import BaseMetric, Evaluator

from apt_dense.extras import from_extra
from apt_dense.mm.errors import DataError
from apt_dense.mm.inference.evaluation import Evaluation

with from_extra('mm'):
    from mmdet.evaluation import CocoMetric
    from mmseg.evaluation import IoUMetric
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

IOU = 0.5


def image_scores(evaluation: Evaluation, min_score: float = 0.3) -> list[float]:
    """The score of each image in an evaluation that has been made, in its order.

    Detection: F1 of the boxes, of the masks where the metric has no boxes, with a score from ``min_score`` on: twice
    the matched ones over predicted and true ones, at IoU 0.5, by COCOeval's matching.  Crowds count for nothing.  An
    image with neither scores 1.  Segmentation: the mean of the IoUs of the classes that occur in truth or prediction;
    an image whose truth is all ignored scores 1.

    Raises:
        DataError: as ``scored_metric``.
    """
    place = scored_metric(evaluation.evaluator)
    metric, results = evaluation.evaluator.metrics[place], evaluation.results[place]
    if isinstance(metric, CocoMetric):
        return _detection_scores(metric, results, min_score)
    return [_mean_iou(np.asarray(intersect), np.asarray(union)) for intersect, union, _, _ in results]


def scored_metric(evaluator: Evaluator) -> int:
    """Which of an evaluator's metrics says how images are scored; to be asked before an evaluation, which takes long.

    Raises:
        DataError: if none of them is one of COCO's or a mean IoU.
    """
    for place, metric in enumerate(evaluator.metrics):
        if isinstance(metric, CocoMetric) and {'bbox', 'segm'} & set(metric.metrics) or (
                isinstance(metric, IoUMetric) and not metric.format_only):
            return place
    names = ', '.join(type(metric).__name__ for metric in evaluator.metrics)
    raise DataError(f'test_evaluator is {names}: wanted CocoMetric with bbox or segm, or IoUMetric')


def _mean_iou(intersect: np.ndarray, union: np.ndarray) -> float:
    there = union > 0
    return float((intersect[there] / union[there]).mean()) if there.any() else 1.0


def _detection_scores(metric: BaseMetric, results: list, min_score: float) -> list[float]:
    """From what a CocoMetric has noted of each image: truth and prediction."""
    predictions = [prediction for _, prediction in results]
    kind = 'bbox' if 'bbox' in metric.metrics else 'segm'
    order = [prediction['img_id'] for prediction in predictions]
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        files = metric.results2json(predictions, f'{folder}/results')
        truth = metric._coco_api
        if any(len(prediction['scores']) for prediction in predictions):
            found = truth.loadRes(files[kind])
        else:
            found = COCO()
            found.dataset = dict(truth.dataset, annotations=[])
            found.createIndex()
        evaluator = COCOeval(truth, found, kind)
        evaluator.params.imgIds, evaluator.params.catIds = list(dict.fromkeys(order)), metric.cat_ids
        evaluator.params.iouThrs = np.array([IOU])
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ['all']
        evaluator.params.maxDets = [max(len(prediction['scores']) for prediction in predictions) or 1]
        evaluator.evaluate()
    counts = {number: np.zeros(3) for number in order}  # matched, predicted, true
    for matches in evaluator.evalImgs:
        if matches is None:
            continue
        counted = (np.asarray(matches['dtScores']) >= min_score) & ~np.asarray(matches['dtIgnore'][0], bool)
        counts[matches['image_id']] += (
            (np.asarray(matches['dtMatches'][0])[counted] > 0).sum(), counted.sum(),
            (~np.asarray(matches['gtIgnore'], bool)).sum())
    return [float(2 * matched / (predicted + true)) if predicted + true else 1.0
            for matched, predicted, true in (counts[number] for number in order)]
