"""Boundary IoU: the IoU of two regions along their contours, which the inside of large regions does not hide.

Source: Cheng et al., Boundary IoU (CVPR 2021, arXiv 2103.16562), eq. 1: of a mask, the pixels that are in it and within
``distance_px`` of its contour; the IoU of these of the truth and of the prediction.  As in its code, distances are
chessboard distances, the border of the image is a contour, and ``distance_px`` is 2 % of the image's diagonal.
"""
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from scipy.ndimage import distance_transform_cdt

DISTANCE_OF_DIAGONAL = 0.02


def boundary_distance_px(height_px: int, width_px: int) -> int:
    """How wide the boundary is in an image of this size, at least 1 px."""
    return max(1, round(DISTANCE_OF_DIAGONAL * (height_px**2 + width_px**2)**0.5))


def boundary_region(mask: np.ndarray, distance_px: int) -> np.ndarray:
    """The pixels of a mask that are within ``distance_px`` of a pixel outside it.

    Args:
        mask: (H, W) bool.  What is beyond the image is outside.

    Returns:
        (H, W) bool.
    """
    distances = distance_transform_cdt(np.pad(mask, 1), 'chessboard')[1:-1, 1:-1]  # 0 outside the mask
    return mask & (distances <= distance_px)


def boundary_areas(prediction: np.ndarray, label: np.ndarray, num_classes: int,
                   ignore_index: int = 255) -> tuple[np.ndarray, np.ndarray]:
    """Intersection and union of the boundary regions of each class, in pixels.

    Args:
        prediction, label: (H, W) class ids.
        ignore_index: pixels with this label do not count.  The label's contour runs along them, and the prediction's is
            cut there.

    Returns:
        (num_classes,) int64 each.
    """
    distance_px = boundary_distance_px(*label.shape)
    counted = label != ignore_index
    intersections, unions = np.zeros((2, num_classes), np.int64)
    for index in np.union1d(np.unique(prediction[counted]), np.unique(label[counted])):
        predicted, true = (boundary_region((ids == index) & counted, distance_px) for ids in (prediction, label))
        intersections[index] = (predicted & true).sum()
        unions[index] = (predicted | true).sum()
    return intersections, unions


@METRICS.register_module()
class BoundaryIoUMetric(BaseMetric):
    """Evaluator of segmentation: ``boundary_IoU``, the mean over the classes in percent.

    Intersections and unions are summed over the images first, as those of mmseg's mIoU; a class that neither occurs nor
    is predicted does not count.
    """

    def __init__(self, ignore_index: int = 255, **kwargs):
        super().__init__(**kwargs)
        self.ignore_index = ignore_index

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """See ``BaseMetric.process``."""
        num_classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            maps = (sample[key]['data'].squeeze(0).cpu().numpy() for key in ('pred_sem_seg', 'gt_sem_seg'))
            self.results.append(boundary_areas(*maps, num_classes, self.ignore_index))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """See ``BaseMetric.compute_metrics``."""
        intersections, unions = (sum(areas) for areas in zip(*results, strict=True))
        present = unions > 0
        return OrderedDict(boundary_IoU=100 * float((intersections[present] / unions[present]).mean()))
