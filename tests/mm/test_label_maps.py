"""Label maps as they come: LoadLabelMap maps every id to a class, ignores it, or names the file."""
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from apt_dense.mm.seg import LoadLabelMap


def results(path: Path, **more) -> dict:
    settings = dict(reduce_zero_label=False, label_map=None, seg_fields=[])
    return settings | dict(seg_map_path=str(path), img_path='image.jpg') | more


def write(path: Path, values: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), values)
    return path


@pytest.fixture
def ids(tmp_path) -> Path:
    """All 256 ids, of which 0 to 150 and 255 are known to a dataset of 150 classes with reduce_zero_label."""
    return write(tmp_path / 'ids.png', np.arange(256, dtype=np.uint8).reshape(16, 16))


@pytest.mark.parametrize('reduce_zero_label', [False, True])
@pytest.mark.parametrize('label_map', [None, {0: 255, 1: 0, 2: 1, 3: 255}])
def test_known_ids_are_mmsegs(tmp_path, reduce_zero_label, label_map):
    path = write(tmp_path / 'map.png', np.array([[0, 1, 2], [3, 3, 255]], np.uint8))
    more = dict(reduce_zero_label=reduce_zero_label, label_map=label_map)
    ours = LoadLabelMap(num_classes=4)(results(path, **more))
    theirs = LoadAnnotations()(results(path, **more))
    assert np.array_equal(ours['gt_seg_map'], theirs['gt_seg_map'])
    assert ours['gt_seg_map'].dtype == np.uint8 and ours['seg_fields'] == ['gt_seg_map']


def test_unknown_ids_are_named(ids):
    load = LoadLabelMap(num_classes=150)
    first = re.escape(f'{ids} holds the ids [150, 151, 152')
    with pytest.raises(ValueError, match=f'{first}.*num_classes=150.*ignore'):
        load(results(ids))
    with pytest.raises(ValueError, match=re.escape('holds the ids [151, 152')):
        load(results(ids, reduce_zero_label=True))


def test_unknown_ids_are_ignored_on_request(ids):
    labels = LoadLabelMap(num_classes=150, unknown_ids='ignore')(results(ids, reduce_zero_label=True))['gt_seg_map']
    expected = [255, *range(150), *[255] * 105]
    assert labels.flatten().tolist() == expected


def test_sixteen_bit_ids_are_not_cut(tmp_path):
    """mmsegmentation takes 256 for 0."""
    path = write(tmp_path / 'map.png', np.array([[256, 1], [2, 3]], np.uint16))
    assert LoadAnnotations()(results(path))['gt_seg_map'].tolist() == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match=re.escape('holds the ids [256]')):
        LoadLabelMap(num_classes=4)(results(path))


def test_a_palette_file_is_read_as_ids(tmp_path):
    picture = Image.fromarray(np.array([[0, 2], [1, 255]], np.uint8), 'P')
    picture.putpalette([value for index in range(256) for value in (255 - index, index, 0)])
    picture.save(tmp_path / 'map.png')
    labels = LoadLabelMap(num_classes=3)(results(tmp_path / 'map.png'))['gt_seg_map']
    assert labels.tolist() == [[0, 2], [1, 255]]


def test_a_map_of_colours_is_refused(tmp_path):
    path = write(tmp_path / 'map.png', np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(ValueError, match=r'map\.png has shape \(4, 5, 3\), wanted one channel of class ids'):
        LoadLabelMap(num_classes=3)(results(path))


def test_a_map_of_another_size_is_refused(tmp_path):
    path = write(tmp_path / 'map.png', np.zeros((4, 5), np.uint8))
    with pytest.raises(ValueError, match=r'map\.png is 4x5 px \(height x width\), its image image\.jpg 5x4 px'):
        LoadLabelMap(num_classes=3)(results(path, ori_shape=(5, 4)))


def test_settings(tmp_path):
    with pytest.raises(ValueError, match="unknown_ids='skip': choose 'raise' or 'ignore'"):
        LoadLabelMap(num_classes=3, unknown_ids='skip')
