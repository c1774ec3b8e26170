"""COCO's figures by faster-coco-eval are pycocotools'."""
import copy
import json

import numpy as np
import pytest
from mmdet.evaluation.metrics import coco_metric
from pycocotools import mask as coco_mask

import apt_dense.mm.det  # noqa: F401
from tests.locations import load_tool

pytest.importorskip('faster_coco_eval')
tool = load_tool('benchmark/coco_evaluation.py')
FASTER = coco_metric.COCOeval
PLAIN = FASTER.__wrapped__


def both(truth: dict, detections: list[dict], kind: str, **options) -> list:
    """Evaluators that have run; each has its own copy of the truth, into which they write."""
    return [tool.evaluate(evaluator, copy.deepcopy(truth), detections, kind, **options)
            for evaluator in (PLAIN, FASTER)]


@pytest.fixture(scope='module')
def truth() -> dict:
    """As dense as train2017; some objects without area, some to be ignored, one image without any."""
    truth = tool.make_truth(40, np.random.RandomState(0))
    for annotation in truth['annotations'][::9]:
        annotation['area'] = 0.0
    for annotation in truth['annotations'][::7]:
        annotation['ignore'] = 1
    truth['annotations'] = [annotation for annotation in truth['annotations'] if annotation['image_id'] != 5]
    assert any(annotation['iscrowd'] for annotation in truth['annotations'])
    return truth


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
@pytest.mark.parametrize('per_image', [3, 200])
@pytest.mark.parametrize('use_cats', [True, False])
def test_figures_are_those_of_pycocotools(truth, kind, per_image, use_cats):
    detections = tool.make_detections(truth, per_image, np.random.RandomState(1))
    detections = [one for one in detections if one['image_id'] != 7]
    plain, faster = both(truth, detections, kind, use_cats=use_cats)
    assert type(faster) is not type(plain)
    assert 0.01 < plain.stats[0] < 0.9
    np.testing.assert_allclose(faster.stats, plain.stats, atol=1e-9, rtol=0)
    for name in ('precision', 'recall'):
        np.testing.assert_allclose(faster.eval[name], plain.eval[name], atol=1e-9, rtol=0)


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_figures_of_the_demo(kind, tmp_path):
    """Its truth is RLE; detections are objects that are shifted, some of them of another class."""
    load_tool('demo/make_demo_dataset.py').make_dataset(tmp_path / 'demo', 1, 12)
    truth = json.loads((tmp_path / 'demo/annotations/instances_val.json').read_text())
    random, detections = np.random.RandomState(2), []
    classes = [category['id'] for category in truth['categories']]
    for one in truth['annotations'] * 3:
        mask = np.roll(coco_mask.decode(one['segmentation']), random.randint(-9, 10, 2), (0, 1))
        rle = coco_mask.encode(np.asfortranarray(mask))
        detections.append(dict(
            image_id=one['image_id'], score=round(float(random.rand()), 2), bbox=coco_mask.toBbox(rle).tolist(),
            category_id=one['category_id'] if random.rand() < 0.8 else int(random.choice(classes)),
            segmentation=dict(size=rle['size'], counts=rle['counts'].decode())))
    plain, faster = both(truth, detections, kind)
    assert 0.01 < plain.stats[0] < 0.9
    np.testing.assert_allclose(faster.stats, plain.stats, atol=1e-9, rtol=0)


def test_ap_is_of_the_best_hundred(truth):
    """pycocotools' first figure; faster-coco-eval's own summary counts as many as maxDets allows."""
    detections = tool.make_detections(truth, 400, np.random.RandomState(1))
    plain, faster = both(truth, detections, 'bbox', use_cats=False)
    np.testing.assert_allclose(faster.stats[0], plain.stats[0], atol=1e-9, rtol=0)
    super(type(faster), faster).summarize()
    assert abs(faster.stats[0] - plain.stats[0]) > 1e-3


@pytest.mark.parametrize('other_id', [str, lambda one: -one], ids=['text', 'negative'])
@pytest.mark.parametrize('change', ['images', 'categories', 'annotations'])
def test_ids_that_are_no_positive_numbers_are_left_to_pycocotools(truth, change, other_id):
    truth = copy.deepcopy(truth)
    names = {'images': 'image_id', 'categories': 'category_id'}
    for one in truth[change]:
        one['id'] = other_id(one['id'])
    detections = tool.make_detections(tool.make_truth(40, np.random.RandomState(0)), 3, np.random.RandomState(1))
    for one in [*truth['annotations'], *detections] if change in names else ():
        one[names[change]] = other_id(one[names[change]])
    plain, other = both(truth, detections, 'bbox')
    assert type(other) is type(plain)
    np.testing.assert_array_equal(other.stats, plain.stats)


def test_coco_metric_reports_the_same(truth, tmp_path, monkeypatch):
    """mmdet's own metric, by class and for proposals too."""
    from mmengine.fileio import dump
    dump(truth, str(tmp_path / 'truth.json'))
    detections = tool.make_detections(truth, 20, np.random.RandomState(1))
    reported = {}
    for name, evaluator in (('plain', PLAIN), ('faster', FASTER)):
        monkeypatch.setattr(coco_metric, 'COCOeval', evaluator)
        metric = coco_metric.CocoMetric(str(tmp_path / 'truth.json'), ['bbox', 'segm', 'proposal'], classwise=True)
        metric.dataset_meta = dict(classes=[category['name'] for category in truth['categories']])
        metric.cat_ids = metric.img_ids = None
        results = []
        for image in truth['images']:
            found = [one for one in detections if one['image_id'] == image['id']]
            boxes = np.array([one['bbox'] for one in found])
            boxes[:, 2:] += boxes[:, :2]
            labels, scores = (np.array([one[key] for one in found]) for key in ('category_id', 'score'))
            results.append(({}, dict(
                img_id=image['id'], bboxes=boxes, scores=scores, labels=labels - 1,
                masks=[dict(one['segmentation'], counts=one['segmentation']['counts'].encode()) for one in found])))
        reported[name] = metric.compute_metrics(results)
    assert len(reported['plain']) > 80
    assert reported['faster'].keys() == reported['plain'].keys()
    for key, value in reported['plain'].items():
        np.testing.assert_allclose(reported['faster'][key], value, atol=1e-9, rtol=0, err_msg=key)
