"""Bitmaps are encoded as pycocotools encodes them."""
import mmdet.evaluation.metrics.coco_metric as coco_metric
import numpy as np
import pytest
from mmdet.structures import mask as mmdet_masks
from pycocotools import mask as coco_mask

import apt_dense.mm.det  # noqa: F401
from apt_dense.mm.compat.coco_evaluation import encode_mask

HEIGHT, WIDTH = 37, 53


def bitmaps() -> dict[str, np.ndarray]:
    """Ellipses, also over the edges, noise, and what the first and the last run depend on."""
    random = np.random.RandomState(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    found = {f'ellipse_{number}': ((y - random.randint(HEIGHT)) / random.randint(1, HEIGHT))**2
             + ((x - random.randint(WIDTH)) / random.randint(1, WIDTH))**2 < 1 for number in range(40)}
    found |= {'noise': random.rand(HEIGHT, WIDTH) < 0.5, 'none': x < 0, 'all': x >= 0, 'two_parts': x % 40 == 3,
              'row': y == HEIGHT - 1, 'column': x == WIDTH - 1}
    found |= {f'pixel_{row}_{column}': (y == row) & (x == column)
              for row in (0, 9, HEIGHT - 1) for column in (0, 9, WIDTH - 1)}
    return found


BITMAPS = bitmaps()


@pytest.mark.parametrize('name', BITMAPS)
def test_runs_are_those_of_pycocotools(name):
    mask = BITMAPS[name]
    wanted = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_mask(mask) == encode_mask(np.asfortranarray(mask)) == wanted


def test_mmdet_encodes_by_the_covered_columns():
    """... wherever it has the function; what is no bool is left to it."""
    encode = coco_metric.encode_mask_results
    assert encode is mmdet_masks.encode_mask_results and hasattr(encode, 'replaced_by_apt_dense')
    masks = np.stack(list(BITMAPS.values()))
    assert encode(masks) == encode.__wrapped__(masks) == encode(masks.astype(np.uint8))
