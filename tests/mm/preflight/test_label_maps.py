"""Label maps before the first iteration: which files belong together, and which classes can occur."""
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from apt_dense.mm.preflight.findings import STOP, WARN
from apt_dense.mm.preflight.headers import open_header
from apt_dense.mm.preflight.label_maps import RULES, check_label_maps

CONFIG = Path(__file__).parents[3] / 'configs/eva02_ti_demo_seg.py'
CLASSES = ('road', 'roof', 'field')
SPLITS = ('train', 'val', 'test')


def write_picture(path: Path, height: int = 12, width: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    ok, data = cv2.imencode(path.suffix.lower(), noise)
    assert ok
    path.write_bytes(data.tobytes())


def write_map(path: Path, ids, height: int = 12, width: int = 16) -> None:
    """A label map with all of the ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.asarray(ids)
    assert cv2.imwrite(str(path), np.resize(ids, (height, width)).astype(ids.dtype if ids.dtype != int else np.uint8))


@pytest.fixture
def root(tmp_path) -> Path:
    """Three pictures of three classes, good ones."""
    for name in 'abc':
        write_picture(tmp_path / f'images/{name}.jpg')
        write_map(tmp_path / f'labels/{name}.png', [0, 1, 2, 255])
    return tmp_path


def config(root: Path, classes=CLASSES, **dataset) -> Config:
    """A config whose three splits read ``root``."""
    cfg = Config.fromfile(CONFIG)
    for split in SPLITS:
        loader = cfg[f'{split}_dataloader']
        loader.dataset.update(dataset, data_root=str(root))
        loader.dataset.data_prefix = dict(img_path='images', seg_map_path='labels')
        loader.dataset.metainfo = dict(classes=classes)
        for step in loader.dataset.pipeline:
            if step.type == 'LoadLabelMap':
                step.num_classes = len(classes)
    return cfg


def found(cfg: Config, split: str = 'train', deep: str | None = None) -> dict[str, str]:
    """{rule: message}"""
    findings = list(check_label_maps(cfg, split, deep))
    assert all(finding.rule in RULES for finding in findings)
    assert len({finding.rule for finding in findings}) == len(findings)
    return {finding.rule.name: str(finding) for finding in findings}


def wrapped(cfg: Config, split: str, wrapper: str) -> Config:
    loader = cfg[f'{split}_dataloader']
    inner = loader.dataset
    loader.dataset = {
        'ConcatDataset': dict(type='ConcatDataset', datasets=[inner]),
        'RepeatDataset': dict(type='RepeatDataset', times=2, dataset=inner),
        'nested': dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[inner])),
    }[wrapper]
    return cfg


@pytest.mark.parametrize('deep', [None, 'sample', 'all'])
@pytest.mark.parametrize('split', SPLITS)
def test_good_data_has_no_finding(root, split, deep):
    assert found(config(root), split, deep) == {}


def test_severities():
    severity = {rule.name: rule.severity for rule in RULES}
    assert len(severity) == len(RULES)
    assert severity['pictures-of-another-suffix'] == severity['all-but-one-class-ignored'] == STOP
    assert severity['maps-without-picture'] == severity['class-never-seen'] == WARN


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('wrapper', [None, 'ConcatDataset', 'RepeatDataset', 'nested'])
def test_masks_of_0_and_255_for_two_classes(root, split, wrapper):
    for name in 'abc':
        write_map(root / f'labels/{name}.png', [0, 255])
    cfg = config(root, ('background', 'crack'))
    message = found(wrapped(cfg, split, wrapper) if wrapper else cfg, split)['all-but-one-class-ignored']
    assert "only 'background' is left, crack cannot occur" in message
    assert 'the ids 0, 255 were found, of which 255 is ignored; 3 of 3 label maps were read' in message
    assert f'{split}_dataloader.dataset' in message and 'convert the maps (255 to 1' in message


def test_a_class_that_is_rare(root):
    """In one of a hundred maps: more are read than the usual 64 before it is said that it cannot occur."""
    for number in range(100):
        write_picture(root / f'images/{number:03}.jpg')
        write_map(root / f'labels/{number:03}.png', [0, 1, 255] if number == 51 else [0, 255])
    for name in 'abc':
        (root / f'images/{name}.jpg').unlink()
        (root / f'labels/{name}.png').unlink()
    assert found(config(root, ('background', 'crack'))) == {}
    write_map(root / 'labels/051.png', [0, 255])
    message = found(config(root, ('background', 'crack')))['all-but-one-class-ignored']
    assert '100 of 100 label maps were read' in message


def test_a_picture_beyond_pillows_limit(root):
    """Only its header is read."""
    with open(root / 'images/a.bmp', 'wb') as file:
        file.write(b'BM' + struct.pack('<IHHIIiiHHIIiiII', 54, 0, 0, 54, 40, 40000, 40000, 1, 24, 0, 0, 1, 1, 0, 0))
    with open_header(str(root / 'images/a.bmp')) as picture:
        assert picture.size == (40000, 40000)
    with pytest.raises(Image.DecompressionBombError), Image.open(root / 'images/a.bmp'):
        pass


@pytest.mark.parametrize(('ids', 'settings', 'loader', 'message'), [
    ([0, 255], dict(reduce_zero_label=True), {}, 'every pixel is ignored'),
    ([255], {}, {}, 'every pixel is ignored'),
    ([0, 1], dict(reduce_zero_label=True), {}, "only 'road' is left, roof, field cannot occur"),
    ([0, 38, 75], {}, dict(unknown_ids='ignore'), "only 'road' is left, roof, field cannot occur"),
    ([100, 200], {}, dict(unknown_ids='ignore'), 'every pixel is ignored'),
])
def test_other_ways_to_ignore_all_but_one_class(root, ids, settings, loader, message):
    for name in 'abc':
        write_map(root / f'labels/{name}.png', ids)
    cfg = config(root, **settings)
    cfg.train_dataloader.dataset.pipeline[1].update(loader)
    assert message in found(cfg)['all-but-one-class-ignored']


def test_a_class_that_no_map_has_is_told_with_the_ids(root):
    """reduce_zero_label where 0 is a class: the last class has no id, and the first is ignored."""
    for name in 'abc':
        write_map(root / f'labels/{name}.png', [0, 1, 2])
    message = found(config(root, reduce_zero_label=True))['class-never-seen']
    assert 'no pixel of field: with reduce_zero_label=True and num_classes=3, the ids 0, 1, 2 were found' in message
    assert 'of which 0 is ignored' in message
    for name in 'abc':
        write_map(root / f'labels/{name}.png', [0, 2])
    assert 'no pixel of roof: ' in found(config(root))['class-never-seen']


def test_a_rare_class_is_looked_for_before_it_is_missed(root):
    for index in range(60):
        write_picture(root / f'images/{index:02}.jpg')
        write_map(root / f'labels/{index:02}.png', [0, 1])
    for name in 'abc':
        write_map(root / f'labels/{name}.png', [0, 1])
    write_map(root / 'labels/37.png', [0, 1, 2])
    assert found(config(root)) == {}
    write_map(root / 'labels/37.png', [0, 1])
    assert 'no pixel of field: ' in found(config(root))['class-never-seen']


def test_many_classes_are_not_expected_in_a_sample(root):
    cfg = config(root, tuple(f'class {index}' for index in range(150)))
    assert found(cfg) == {} and 'class-never-seen' in found(cfg, deep='all')


@pytest.mark.parametrize(('write', 'message'), [
    (lambda path: write_map(path, np.array([0, 1, 3])), 'holds the ids [3], which no class has'),
    (lambda path: write_map(path, np.array([0, 256], np.uint16)), 'holds the ids [256], which no class has'),
    (lambda path: write_picture(path), 'has shape (12, 16, 3), wanted one channel'),
    (lambda path: write_map(path, [0, 1], height=6), 'is 6x16 px (height x width), its image'),
    (lambda path: path.write_bytes(b'no picture'), 'cannot be read'),
    (lambda path: path.write_bytes(path.read_bytes()[:60]), 'cannot be read'),
])
def test_maps_that_are_refused(root, write, message):
    write(root / 'labels/b.png')
    text = found(config(root))['label-maps-refused']
    assert message in text and '1 of 3 label maps' in text and f'{root}/labels/b.png' in text
    cfg = config(root)
    load, label = cfg.train_dataloader.dataset.pipeline[:2]
    cfg.train_dataloader.dataset.pipeline[:2] = [dict(type='GuardSamples', on_bad='skip', transforms=[load, label])]
    assert 'label-maps-refused' not in found(cfg) and message in found(cfg)['label-maps-skipped']


def test_mmsegmentations_own_loader_is_checked_too(root):
    write_map(root / 'labels/b.png', [0, 3])
    cfg = config(root)
    cfg.train_dataloader.dataset.pipeline[1] = dict(type='LoadAnnotations')
    assert 'holds the ids [3]' in found(cfg)['label-maps-refused']


def test_test_time_augmentation_loads_maps_too(root):
    write_map(root / 'labels/b.png', [0, 3])
    cfg = config(root)
    cfg.test_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='TestTimeAug', transforms=[[dict(type='LoadLabelMap', num_classes=3)], [dict(type='PackSegInputs')]])]
    assert 'holds the ids [3]' in found(cfg, 'test')['label-maps-refused']


@pytest.mark.parametrize('split', SPLITS)
def test_capitals_in_the_suffix(root, split):
    for name in 'de':
        write_picture(root / f'images/{name}.JPG')
        write_map(root / f'labels/{name}.png', [0, 1, 2])
    message = found(config(root), split)['pictures-of-another-suffix']
    assert f"2 pictures do not end in '.jpg' in {root}/images (2 .JPG) beside 3 that do: d.JPG, e.JPG" in message
    assert list(found(config(root), split)) == ['pictures-of-another-suffix']  # their maps are not called superfluous
    (root / 'labels/d.png').unlink()
    (root / 'labels/e.png').unlink()
    assert list(found(config(root), split)) == ['pictures-beside']


@pytest.mark.parametrize('split', SPLITS)
def test_no_picture_of_the_suffix(root, split):
    for name in 'abc':
        (root / f'images/{name}.jpg').unlink()
        write_picture(root / f'images/{name}.png')
    (root / 'images/readme.txt').touch()
    message = found(config(root), split)['no-pictures']
    assert f"no file ends in '.jpg' in {root}/images, which has 4 files (3 .png, 1 .txt)" in message
    assert 'img_suffix' in message
    assert found(config(root, img_suffix='.png'), split) == {}


def test_pictures_without_a_map_and_maps_without_a_picture(root):
    (root / 'images/a.jpg').unlink()
    (root / 'labels/b.png').rename(root / 'labels/b_mask.png')
    messages = found(config(root))
    assert "1 of 2 pictures have no label map that ends in '.png'" in messages['pictures-without-map']
    assert f'{root}/images/b.jpg, which wants b.png; b_mask.png is there' in messages['pictures-without-map']
    assert f"2 of 3 label maps in {root}/labels have no picture that ends in '.jpg'" in messages['maps-without-picture']
    assert 'a.png, b_mask.png' in messages['maps-without-picture']


def test_maps_of_another_suffix(root):
    message = found(config(root, seg_map_suffix='.tif'))['pictures-without-map']
    assert "3 of 3 pictures have no label map that ends in '.tif'" in message and '(3 .png)' in message


def test_pictures_without_a_map_that_are_skipped(root):
    (root / 'labels/b.png').unlink()
    cfg = config(root)
    load, label = cfg.train_dataloader.dataset.pipeline[:2]
    cfg.train_dataloader.dataset.pipeline[:2] = [dict(type='GuardSamples', on_bad='skip', transforms=[load, label])]
    assert list(found(cfg)) == ['pictures-without-map-skipped']
    assert list(found(cfg, 'val')) == ['pictures-without-map']


def test_a_list_that_is_a_folder(root):
    (root / 'lists').mkdir()
    messages = found(config(root, ann_file='lists'))
    assert list(messages) == ['list-is-a-folder'] and 'lists is a folder, and 3 pictures are' in str(messages)


def test_a_list_of_names(root):
    (root / 'train.txt').write_text('a\nb\n')
    assert found(config(root, ann_file='train.txt')) == {}  # the rest of the folder is another split
    (root / 'train.txt').write_text('a\nb.jpg\n')
    message = found(config(root, ann_file='train.txt'))['listed-pictures-missing']
    assert 'lists 2 pictures, of which 1 do not exist' in message and 'b.jpg.jpg' in message


def test_pictures_and_maps_in_one_folder(root):
    for name in 'abc':
        (root / f'labels/{name}.png').rename(root / f'images/{name}.png')
    cfg = config(root)
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.data_prefix.seg_map_path = 'images'
    assert found(cfg) == {}
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.img_suffix = '.png'
    assert '3 pictures' in found(cfg)['map-is-the-picture']


def test_a_pipeline_without_maps_wants_none(root):
    for name in 'abc':
        (root / f'labels/{name}.png').unlink()
    cfg = config(root)
    pipeline = cfg.test_dataloader.dataset.pipeline
    cfg.test_dataloader.dataset.pipeline = [step for step in pipeline if step.type != 'LoadLabelMap']
    assert found(cfg, 'test') == {}
    assert list(found(cfg, 'val')) == ['pictures-without-map']


def test_folders_and_settings_that_do_not_fit(root):
    cfg = config(root)
    cfg.train_dataloader.dataset.data_prefix = dict(img='images', seg_map_path='labels')
    assert 'not set, data_prefix has img, seg_map_path' in found(cfg)['no-picture-folder']
    cfg.train_dataloader.dataset.data_prefix = dict(img_path='pictures', seg_map_path='labels')
    assert f'{root}/pictures is no folder' in found(cfg)['no-picture-folder']
    cfg.train_dataloader.dataset.type = 'ADE20KDataset'
    assert "('road', 'roof', 'field') is not a subset" in found(cfg)['dataset-settings']


def test_jpeg_maps(root):
    for name in 'abc':
        (root / f'labels/{name}.png').unlink()
        write_map(root / f'labels/{name}.jpg', [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert 'jpeg-label-maps' in found(config(root, seg_map_suffix='.jpg'))


def test_damaged_pictures_are_found_when_pixels_are_read(root):
    path = root / 'images/b.jpg'
    path.write_bytes(path.read_bytes()[:-60])
    assert found(config(root)) == {}  # the header is whole
    assert f'{path}' in found(config(root), deep='sample')['pictures-refused']
    path.write_bytes(b'no picture')
    assert f'{path}: cannot identify' in found(config(root))['pictures-refused']


def test_a_subset_by_indices(root):
    (root / 'labels/c.png').unlink()
    assert found(config(root, indices=2)) == {} and 'pictures-without-map' in found(config(root, indices=-1))


def test_detection_and_remote_data_are_passed_over(root):
    cfg = Config.fromfile(CONFIG.with_name('eva02_ti_demo_det.py'))
    assert found(cfg) == {}
    assert found(config('s3://bucket/data')) == {}
