"""COCO's box and mask AP, with objects' sizes in pixels of the model's input."""
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.fileio import load
from mmengine.registry import METRICS

from apt_dense.extras import from_extra
from apt_dense.mm.data.checked_coco import CheckedCocoMetric

with from_extra('mm'):
    from mmdet.datasets.api_wrappers import COCOeval

NAMES = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')  # COCOeval's first six figures


@METRICS.register_module()
class InputSizeCocoMetric(CheckedCocoMetric):
    """``CheckedCocoMetric`` for boxes and masks, in percent and unrounded, over the images that it was given.

    Small objects have less than 32**2 pixels and large ones more than 96**2, as in COCO, but pixels of the model's
    input: of pictures that the pipeline enlarges, a figure by size means the same as of others.

    Args:
        enlarged: the factor by which the pipeline enlarges a side of the annotated picture.

    Figures that no object belongs to are None.
    """

    def __init__(self, *args, enlarged: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.enlarged = enlarged

    def compute_metrics(self, results: Sequence) -> dict[str, float | None]:
        """See ``CocoMetric.compute_metrics``."""
        truths, predictions = zip(*results, strict=True)
        metrics = {}
        with tempfile.TemporaryDirectory() as folder:
            files = self.results2json(predictions, str(Path(folder, 'results')))
            for kind in self.metrics:
                found = load(files[kind])
                for one in found if kind == 'segm' else ():
                    one.pop('bbox')  # or COCO would take the box's area for the mask's
                stats = self._evaluate(kind, found, [truth['img_id'] for truth in truths])
                metrics |= {f'{kind}_{name}': None if value < 0 else 100 * float(value)
                            for name, value in zip(NAMES, stats, strict=False)}
        return metrics

    def _evaluate(self, kind: str, found: list[dict], image_ids: list[int]) -> Sequence[float]:
        """COCOeval's figures; all 0 if nothing was found."""
        if not found:
            return np.zeros(len(NAMES))
        evaluation = COCOeval(self._coco_api, self._coco_api.loadRes(found), kind)
        evaluation.params.catIds = self.cat_ids
        evaluation.params.imgIds = image_ids
        evaluation.params.maxDets = list(self.proposal_nums)
        evaluation.params.areaRng = [[area / self.enlarged**2 for area in limits] for limits in (
            (0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation.stats
