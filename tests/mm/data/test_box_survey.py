"""Boxes that are two corners, told from true ones of all kinds of data."""
import numpy as np
import pytest

from apt_dense.mm.data.box_survey import BoxSurvey, Correlation

COUNTS = (1, 3, 6, 12, 40, 400)
SEEDS = range(40)


def survey(boxes, sizes) -> BoxSurvey:
    result = BoxSurvey()
    for box, (width, height) in zip(boxes, sizes, strict=True):
        result.add([float(item) for item in box], dict(width=int(width), height=int(height)))
    return result


def rules_of(boxes, sizes) -> list[str]:
    return [finding.rule.name for finding in survey(boxes, sizes).suspicions('a.json')]


def image_sizes(rng, count, fixed):
    return np.repeat([[2000, 1500]], count, axis=0) if fixed else rng.integers(200, 3000, (count, 2))


def placed(rng, count, sizes, low, high, reach=1.0):
    """Boxes with sides that are a share of the image's, anywhere in the first ``reach`` of it."""
    sides = sizes * np.exp(rng.uniform(np.log(low), np.log(high), (count, 2)))
    corners = rng.uniform(0, 1, (count, 2)) * np.maximum(sizes * reach - sides, 0)
    return np.concatenate([corners, sides], axis=1)


def centred(rng, count, sizes):
    sides = sizes * rng.uniform(0.5, 0.95, (count, 2))
    corners = (sizes - sides) / 2 + rng.normal(0, 0.01, (count, 2)) * sizes
    return np.concatenate([corners, sides], axis=1)


def of_the_whole_image(rng, count, sizes):
    return np.concatenate([np.zeros((count, 2)), sizes * rng.uniform(0.9, 1, (count, 1))], axis=1)


def nearer_and_larger(rng, count, sizes):
    """As from a car: what stands lower is larger."""
    depth = rng.uniform(0.1, 1, (count, 1))
    sides = sizes * depth * 0.4
    corners = np.concatenate([rng.uniform(0, 0.6, (count, 1)), 0.5 - depth * 0.2], axis=1) * sizes
    return np.concatenate([corners, sides], axis=1)


def lines_of_text(rng, count, sizes):
    left, width = rng.uniform(0.02, 0.1, count), rng.uniform(0.6, 0.88, count)
    return np.stack([left * sizes[:, 0], rng.uniform(0, 0.9, count) * sizes[:, 1], width * sizes[:, 0],
                     rng.uniform(0.01, 0.05, count) * sizes[:, 1]], axis=1)


TRUE = {
    'as COCO': lambda rng, count, sizes: placed(rng, count, sizes, 0.02, 0.9),
    'small': lambda rng, count, sizes: placed(rng, count, sizes, 0.005, 0.05),
    'small, in one corner': lambda rng, count, sizes: placed(rng, count, sizes, 0.005, 0.05, reach=0.2),
    'large': lambda rng, count, sizes: placed(rng, count, sizes, 0.5, 0.95),
    'centred': centred, 'whole images': of_the_whole_image, 'from a car': nearer_and_larger, 'text': lines_of_text,
}


@pytest.mark.parametrize('fixed', [True, False])
@pytest.mark.parametrize('kind', TRUE)
def test_true_boxes_are_left_alone(kind, fixed):
    alarms = 0
    for count in COUNTS:
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            sizes = image_sizes(rng, count, fixed)
            alarms += 'coco-boxes-as-corners' in rules_of(TRUE[kind](rng, count, sizes), sizes)
    assert alarms == 0


@pytest.mark.parametrize('fixed', [True, False])
@pytest.mark.parametrize(('reach', 'high'), [(0.2, 0.03), (0.45, 0.1), (1.0, 0.05), (1.0, 0.6)])
@pytest.mark.parametrize('count', [8, 12, 40, 400])
def test_corners_are_told(count, reach, high, fixed):
    """Wherever the objects are: with reach 0.2, x + width read as they stand leave no image."""
    told = 0
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        sizes = image_sizes(rng, count, fixed)
        boxes = placed(rng, count, sizes, 0.005, high, reach)
        boxes[:, 2:] += boxes[:, :2]
        told += rules_of(boxes, sizes) == ['coco-boxes-as-corners']
    assert told == len(SEEDS)


def test_the_numbers_are_said():
    rng = np.random.default_rng(0)
    sizes = image_sizes(rng, 30, True)
    boxes = placed(rng, 30, sizes, 0.01, 0.03, 0.2)
    boxes[:, 2:] += boxes[:, :2]
    finding, = survey(boxes, sizes).suspicions('a.json')
    assert 'of all 30 boxes the third number is larger than the first' in finding.got
    assert 'rise together (correlation 1.00 and 1.00)' in finding.got


def test_boxes_without_area_are_no_fractions():
    boxes = [[index % 2, 1, 0, 0] for index in range(9)]
    assert rules_of(boxes, [(64, 48)] * 9) == []
    assert rules_of([[0.1, 0.2, 0.3, 0.4]] * 9, [(64, 48)] * 9) == ['coco-boxes-as-fractions']


def test_correlation_is_pearsons():
    rng = np.random.default_rng(0)
    first = rng.normal(5, 2, 100)
    second = first + rng.normal(0, 1, 100)
    result = Correlation()
    for pair in zip(first, second, strict=True):
        result.add(*pair)
    assert result.value() == pytest.approx(np.corrcoef(first, second)[0, 1])
    still = Correlation()
    for value in range(9):
        still.add(value, 1.0)
    assert still.value() == 0 and not still.is_sure()
