"""Label maps as they come: LoadLabelMap maps every id to a class, ignores it, or names the file."""
import re
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from apt_dense.mm.seg import IGNORE, LoadLabelMap


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
    assert IGNORE in ours['gt_seg_map']
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


def write_tiff(path: Path, values: np.ndarray) -> Path:
    """Signed, 32-bit and floating-point maps, as Pillow reads them."""
    Image.fromarray(values).save(path)
    return path


NO_CLASS = 'which no class has: the dataset has num_classes=3'


@pytest.mark.parametrize('values', [
    np.array([[-1, 1], [2, 0]], np.int32), np.array([[-300, 1], [2, 0]], np.int32),
    np.array([[1, 2], [2**31 - 1, 0]], np.int32), np.array([[3, 2], [1, 0]], np.uint16),
    np.array([[-1.0, 1.0], [2.0, 0.0]], np.float32), np.array([[1.0, 2.0], [1e30, 0.0]], np.float32)])
@pytest.mark.parametrize('reduce_zero_label', [False, True])
def test_ids_without_a_class_are_refused_whatever_the_files_type(tmp_path, values, reduce_zero_label):
    path = write_tiff(tmp_path / 'map.tif', values)
    settings = results(path, reduce_zero_label=reduce_zero_label)
    num_classes = 3 - reduce_zero_label  # ids 0 to 2 are known
    unknown = [int(value) for value in values.flat if not 0 <= value <= 2]
    with pytest.raises(ValueError, match=re.escape(f'{path} holds the ids {unknown}, which no class has')):
        LoadLabelMap(num_classes)(dict(settings, seg_fields=[]))
    labels = LoadLabelMap(num_classes, unknown_ids='ignore')(settings)['gt_seg_map']
    known = (values >= reduce_zero_label) & (values <= 2)
    expected = np.where(known, values - reduce_zero_label, 255)
    assert np.array_equal(labels, expected) and labels.dtype == np.uint8


def test_a_negative_id_may_be_mapped_by_the_dataset(tmp_path):
    path = write_tiff(tmp_path / 'map.tif', np.array([[-1, 1], [2, 0]], np.int32))
    for reduced, expected in ((False, [[255, 1], [2, 0]]), (True, [[255, 0], [1, 255]])):
        more = dict(reduce_zero_label=reduced, label_map={-1: 255})
        assert LoadLabelMap(num_classes=3)(results(path, **more))['gt_seg_map'].tolist() == expected


def test_id_256_does_not_become_255(tmp_path):
    """reduce_zero_label takes 1 from each id, and 255 would be ignored without a word."""
    path = write(tmp_path / 'map.png', np.array([[256, 1], [255, 0]], np.uint16))
    with pytest.raises(ValueError, match=re.escape(f'holds the ids [256], {NO_CLASS}')):
        LoadLabelMap(num_classes=3)(results(path, reduce_zero_label=True))
    # ... but a dataset of more than 255 classes, of which a few were chosen, has a class of that number.
    labels = LoadLabelMap(num_classes=3)(results(path, reduce_zero_label=True, label_map={0: 1, 255: 2}))['gt_seg_map']
    assert labels[0].tolist() == [2, 1]


@pytest.mark.parametrize('target', [-1, 3, 256, 511])
def test_a_label_map_that_leads_to_no_class_is_refused(tmp_path, target):
    """As 8 bits, -1, 256 and 511 would be 255, 0 and 255."""
    path = write(tmp_path / 'map.png', np.array([[0, 1], [2, 1]], np.uint8))
    message = re.escape(f'{path} holds the ids [1], {NO_CLASS}') + '.*' + re.escape(f'label_map sends 1 to {target}')
    with pytest.raises(ValueError, match=message):
        LoadLabelMap(num_classes=3)(results(path, label_map={0: 0, 1: target}))


def test_floating_point_maps(tmp_path):
    """Whole numbers are ids; anything else is no id, and was cut."""
    path = write_tiff(tmp_path / 'whole.tif', np.array([[0, 1], [2, 255]], np.float32))
    assert LoadLabelMap(num_classes=3)(results(path))['gt_seg_map'].tolist() == [[0, 1], [2, 255]]
    for name, value in (('fraction', 0.5), ('nan', np.nan), ('infinite', np.inf)):
        path = write_tiff(tmp_path / f'{name}.tif', np.array([[0, 1], [2, value]], np.float32))
        for unknown_ids in ('raise', 'ignore'):
            with pytest.raises(ValueError, match=rf'{name}\.tif holds {value}, wanted whole numbers, class ids'):
                LoadLabelMap(num_classes=3, unknown_ids=unknown_ids)(results(path))


def test_a_map_of_two_colours_is_read_as_ids(tmp_path):
    Image.fromarray(np.array([[True, False], [False, True]])).save(tmp_path / 'map.png')
    labels = LoadLabelMap(num_classes=2)(results(tmp_path / 'map.png'))['gt_seg_map']
    assert labels.tolist() == [[1, 0], [0, 1]]


def test_memory_goes_with_the_map_not_with_its_largest_id(tmp_path):
    path = write_tiff(tmp_path / 'map.tif', np.array([[1, 100_000_000], [2, 0]], np.int32))
    tracemalloc.start()
    try:
        LoadLabelMap(num_classes=3, unknown_ids='ignore')(results(path))
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize('num_classes', [0, 256])
def test_classes_fit_into_eight_bits(num_classes):
    with pytest.raises(ValueError, match=f'num_classes={num_classes}: .* 1 to 255'):
        LoadLabelMap(num_classes=num_classes)
