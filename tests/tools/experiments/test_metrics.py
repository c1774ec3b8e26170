"""Boundary IoU against a loop, and COCO's figures against mmdet's own."""
import numpy as np
import pytest
import torch

from tests.tools.experiments.conftest import modules

boundary_iou, input_sizes = modules.boundary_iou, modules.input_sizes


def region_by_loop(mask, distance_px):
    """Pixel by pixel, from the definition: in the mask, and a pixel that is not lies within the square around it."""
    height, width = mask.shape
    region = np.zeros_like(mask)
    for row, col in np.argwhere(mask):
        for other_row in range(row - distance_px, row + distance_px + 1):
            for other_col in range(col - distance_px, col + distance_px + 1):
                inside = 0 <= other_row < height and 0 <= other_col < width and mask[other_row, other_col]
                region[row, col] |= not inside
    return region


@pytest.mark.parametrize('distance_px', [1, 2, 4])
def test_the_boundary_region_is_that_of_the_definition(distance_px):
    rng = np.random.default_rng(0)
    for _ in range(4):
        mask = np.kron(rng.random((6, 5)) < 0.7, np.ones((4, 3))) > 0
        assert (boundary_iou.boundary_region(mask, distance_px) == region_by_loop(mask, distance_px)).all()
    assert not boundary_iou.boundary_region(np.zeros((5, 7), bool), distance_px).any()
    assert boundary_iou.boundary_region(np.ones((3, 3), bool), 2).all()  # the border of the image is a contour


def test_the_distance_is_two_percent_of_the_diagonal():
    assert boundary_iou.boundary_distance_px(300, 400) == 10
    assert boundary_iou.boundary_distance_px(4, 3) == 1


def samples(*pairs):
    keys = ('pred_sem_seg', 'gt_sem_seg')
    return [{key: {'data': torch.tensor(ids)[None]} for key, ids in zip(keys, pair, strict=True)} for pair in pairs]


def test_boundary_iou_of_a_dataset_against_a_loop():
    rng = np.random.default_rng(1)
    metric = boundary_iou.BoundaryIoUMetric()
    metric.dataset_meta = {'classes': ('a', 'b', 'c', 'never there')}
    pairs = []
    for _ in range(3):
        label = np.kron(rng.integers(0, 3, (5, 7)), np.ones((12, 10), int))
        prediction = np.roll(label, 2, 1)
        label[:9, :5] = 255
        pairs.append((prediction, label))
    metric.process({}, samples(*pairs))
    distance_px = boundary_iou.boundary_distance_px(60, 70)
    assert distance_px == 2
    ious = []
    for index in range(3):
        intersection = union = 0
        for prediction, label in pairs:
            truth = region_by_loop(label == index, distance_px)
            found = region_by_loop((prediction == index) & (label != 255), distance_px)
            intersection += (truth & found).sum()
            union += (truth | found).sum()
        ious.append(intersection / union)
    assert metric.compute_metrics(metric.results)['boundary_IoU'] == pytest.approx(100 * np.mean(ious))
    assert 5 < 100 * np.mean(ious) < 60  # two pixels of shift, where the boundary is two pixels wide
    perfect = boundary_iou.BoundaryIoUMetric()
    perfect.dataset_meta = metric.dataset_meta
    perfect.process({}, samples(*((label, label) for _, label in pairs)))
    assert perfect.compute_metrics(perfect.results)['boundary_IoU'] == 100


def evaluated(data, kind, **options):
    """Metrics of found objects that are the true ones, some shifted, some left out."""
    metric = kind(ann_file=str(data / 'tiny/annotations/instances_train.json'), metric=['bbox', 'segm'],
                  proposal_nums=(1, 10, 100), **options)
    metric.dataset_meta = {'classes': ('ball', 'crate', 'kite', 'lifebuoy', 'starfish')}
    coco = metric._coco_api
    for image_id in coco.getImgIds():
        annotations = coco.loadAnns(coco.getAnnIds(image_id))[:6]
        boxes = torch.tensor([annotation['bbox'] for annotation in annotations])
        boxes[:, 2:] += boxes[:, :2]
        boxes[::2] += 2.0
        masks = torch.tensor(np.stack([np.roll(coco.annToMask(annotation), 1, 0) for annotation in annotations])) > 0
        instances = dict(bboxes=boxes, scores=torch.linspace(0.9, 0.5, len(boxes)), masks=masks,
                         labels=torch.tensor([annotation['category_id'] - 1 for annotation in annotations]))
        info = coco.loadImgs(image_id)[0]
        metric.process({}, [dict(img_id=image_id, ori_shape=(info['height'], info['width']), pred_instances=instances)])
    return metric.compute_metrics(metric.results)


def test_coco_figures_are_mmdets_without_rounding(data):
    from mmdet.evaluation import CocoMetric
    plain, own = evaluated(data, CocoMetric), evaluated(data, input_sizes.InputSizeCocoMetric)
    for name, value in own.items():
        assert value == pytest.approx(100 * plain[name], abs=0.051) or value is None and plain[name] == -1
    assert 0 < own['bbox_mAP'] < 100 and own['bbox_mAP'] != round(own['bbox_mAP'], 1)


def test_sizes_are_those_of_the_enlarged_picture(data):
    native, enlarged = (evaluated(data, input_sizes.InputSizeCocoMetric, enlarged=factor) for factor in (1.0, 2.0))
    assert native['bbox_mAP'] == enlarged['bbox_mAP']
    assert native['bbox_mAP_l'] is None and enlarged['bbox_mAP_l'] is not None


def test_nothing_found(data):
    metric = input_sizes.InputSizeCocoMetric(ann_file=str(data / 'tiny/annotations/instances_val.json'))
    metric.dataset_meta = {'classes': ('ball',)}
    empty = dict(bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64))
    metric.process({}, [dict(img_id=1, ori_shape=(192, 192), pred_instances=empty)])
    assert metric.compute_metrics(metric.results)['bbox_mAP'] == 0
