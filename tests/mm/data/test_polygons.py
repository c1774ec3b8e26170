"""Masks that stay polygons on their way to the loss."""
import copy

import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import LoadAnnotations as TheirLoadAnnotations
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import Config
from mmengine.dataset import Compose
from pycocotools import mask as coco_mask

import apt_dense.mm.det  # noqa: F401  (it registers the steps)
from apt_dense.mm.data.transforms import LoadAnnotations
from tests.locations import CONFIGS

HEIGHT, WIDTH = 90, 120
STAR = np.stack([60 + 20 * np.cos(np.arange(9) * 0.7), 40 + 25 * np.sin(np.arange(9) * 0.7)], 1).ravel().tolist()
POLYGONS = [[[10., 10., 50., 12., 48., 50., 12., 44.]],
            [[70., 20., 110., 22., 90., 80.], [20., 60., 40., 60., 30., 85.]], [STAR]]



def sample(masks: list, crowds: tuple[int, ...] = ()) -> dict:
    """What a dataset gives a pipeline, with the boxes of the first polygons."""
    instances = []
    for index, mask in enumerate(masks):
        points = np.concatenate(POLYGONS[index % 3]).reshape(-1, 2)
        instances.append(dict(bbox=[*points.min(0).tolist(), *points.max(0).tolist()], bbox_label=index, mask=mask,
                              ignore_flag=int(index in crowds)))
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    return dict(img=image, img_shape=(HEIGHT, WIDTH), ori_shape=(HEIGHT, WIDTH), img_path='a.jpg', img_id=1,
                height=HEIGHT, width=WIDTH, instances=instances)


def rle(polygons: list) -> dict:
    encoded = coco_mask.merge(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH))
    return dict(size=list(encoded['size']), counts=encoded['counts'].decode())


@pytest.mark.parametrize(('masks', 'crowds', 'kind', 'ignored'), [
    (POLYGONS, (), PolygonMasks, [False] * 3),
    ([*POLYGONS, rle(POLYGONS[0])], (3,), PolygonMasks, [False] * 3 + [True]),
    ([*POLYGONS, rle(POLYGONS[0])], (), BitmapMasks, [False] * 4)])
def test_no_object_is_lost(masks, crowds, kind, ignored):
    load = LoadAnnotations(with_bbox=True, with_mask=True, poly2mask=False)
    for _ in range(2):  # an image's masks do not decide on the next image's
        results = load(sample(masks, crowds))
        assert isinstance(results['gt_masks'], kind) and results['gt_ignore_flags'].tolist() == ignored
        assert isinstance(load(sample(POLYGONS))['gt_masks'], PolygonMasks)
    assert isinstance(LoadAnnotations(with_bbox=True, with_mask=True)(sample(POLYGONS))['gt_masks'], BitmapMasks)


def test_mmdetection_loses_an_object_whose_mask_is_no_polygon():
    """Delete LoadAnnotations when this fails."""
    results = TheirLoadAnnotations(with_bbox=True, with_mask=True, poly2mask=False)(sample([rle(POLYGONS[0])]))
    assert results['gt_ignore_flags'].tolist() == [True]


def pipeline(size: int, poly2mask: bool) -> Compose:
    """The steps of the COCO configs after the picture is loaded."""
    steps = Config.fromfile(CONFIGS / '_base_/datasets/coco_instance_lsj.py').train_pipeline[1:]
    assert steps[0].poly2mask is False
    steps[0].poly2mask = poly2mask
    for step in steps:
        for key in ('scale', 'crop_size'):
            if key in step:
                step[key] = (size, size)
    return Compose(steps)


@pytest.mark.parametrize('seed', range(12))
def test_large_scale_jittering_of_polygons_is_that_of_bitmaps(seed):
    """The same objects are left; pixels differ at the outlines only, boxes by a pixel of the smaller picture."""
    outcomes = []
    for poly2mask in (False, True):
        np.random.seed(seed)
        outcomes.append(pipeline(128, poly2mask)(copy.deepcopy(sample(POLYGONS))))
    if None in outcomes:
        assert outcomes == [None, None]  # no object is in the crop
        return
    exact, drawn = (outcome['data_samples'].gt_instances for outcome in outcomes)
    assert isinstance(exact.masks, PolygonMasks) and torch.equal(outcomes[0]['inputs'], outcomes[1]['inputs'])
    shared = [label for label in exact.labels.tolist() if label in drawn.labels.tolist()]
    assert len(shared) >= max(len(exact.labels), len(drawn.labels)) - 1  # a sliver may have no pixel
    scale = max(outcomes[0]['data_samples'].scale_factor)
    for label in shared:
        one, other = exact[exact.labels == label], drawn[drawn.labels == label]
        assert (one.bboxes.tensor - other.bboxes.tensor).abs().max() <= 1.5 + scale
        ours, theirs = one.masks.to_ndarray()[0].astype(bool), other.masks.to_ndarray()[0].astype(bool)
        assert ours.shape == theirs.shape
        outline = 2 * (ours.any(0).sum() + ours.any(1).sum()) + 8
        assert (ours != theirs).sum() <= (1 + scale) * outline


def test_the_loss_takes_them():
    """Targets of the mask head are those of bitmaps, but for pixels of the outline."""
    from mmdet.structures.mask import mask_target
    boxes = torch.tensor([[8., 8., 52., 52.], [15., 18., 112., 88.], [40., 14., 82., 66.], [30., 20., 70., 60.]])
    index, cfg = torch.tensor([0, 1, 2, 2]), Config(dict(mask_size=28))
    polygons = PolygonMasks([[np.array(part) for part in parts] for parts in POLYGONS], HEIGHT, WIDTH)
    exact, drawn = (mask_target([boxes], [index], [masks], cfg) for masks in (polygons, polygons.to_bitmap()))
    assert exact.shape == drawn.shape == (4, 28, 28) and exact.mean() > 0.2
    assert (exact != drawn).float().mean() < 0.06
