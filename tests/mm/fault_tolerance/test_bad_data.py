"""Bad files and bad annotations: named and stopped, or counted and skipped."""
import json
import logging

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.logging import MMLogger
from mmengine.runner import Runner

import apt_dense.mm.det
import apt_dense.mm.seg  # noqa: F401
from apt_dense.mm.cli import launch
from apt_dense.mm.fault_tolerance.bad_data import BadDataHook, GuardSamples, LoadCheckedImage, find_guards
from tests.mm.conftest import CLASSES, point_to
from tests.mm.training.test_training import losses_of, run

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)


@pytest.fixture
def warnings_of(caplog, request):
    """warnings_of() -> messages of the current logger from now on."""
    logger = MMLogger.get_instance(request.node.name)
    logger.addHandler(caplog.handler)
    yield lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    logger.removeHandler(caplog.handler)


def encoded(suffix: str) -> bytes:
    return cv2.imencode(suffix, PIXELS)[1].tobytes()


# ---- files ----
@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.bmp', '.tif'])
def test_intact_images_load_as_mmcv_does(suffix, tmp_path):
    path = str(tmp_path / f'image{suffix}')
    for content in (encoded(suffix), encoded(suffix) + b'\0' * 9):
        (tmp_path / f'image{suffix}').write_bytes(content)
        results = LoadCheckedImage().transform(dict(img_path=path, height=40, width=60))
        assert np.array_equal(results['img'], cv2.imread(path)) and results['img'].dtype == np.uint8
        assert results['img_shape'] == results['ori_shape'] == (40, 60)
    assert LoadCheckedImage(to_float32=True).transform(dict(img_path=path))['img'].dtype == np.float32


# ---- policies ----
GUARDED = dict(type='GuardSamples', transforms=[dict(type='LoadCheckedImage'),
                                                dict(type='LoadAnnotations', with_bbox=True, with_mask=True)])


@pytest.mark.parametrize(('name', 'content', 'message'), [
    *((f'{part}{suffix}', encoded(suffix)[:end], 'failed to load image') for suffix in ('.jpg', '.png', '.bmp', '.webp')
      for part, end in (('half', 2000), ('almost', -20))),
    ('text.jpg', b'<html>404</html>', 'failed to load image'),
    ('empty.jpg', b'', '.*'),
    ('shell.jpg', b'\xff\xd8' + b'x' * 99 + b'\xff\xd9', 'failed to load image'),
    ('other.jpg', encoded('.jpg'), r'.*other\.jpg is 40x60 px \(height x width\), the annotations say 60x40: '),
    ('absent.jpg', None, '.*No such file')])
def test_bad_files_are_named(name, content, message, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f'bad sample: {message}') as error:
        TRANSFORMS.build(GUARDED).transform(dict(img_path=str(path), height=60, width=40, instances=[]))
    assert str(path) in str(error.value)


def test_guard_names_the_file_whatever_was_raised(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(encoded('.jpg'))
    sample = dict(img_path=str(tmp_path / 'a.jpg'), instances=[
        dict(bbox=[0, 0, 9, 9], bbox_label=0, ignore_flag=0, mask=dict(counts='?', size='x'))])
    with pytest.raises(ValueError, match=rf"bad sample: {sample['img_path']}: .*Repair or remove it, or set on_bad="):
        TRANSFORMS.build(GUARDED).transform(sample)


def test_a_broken_label_map_is_named(tmp_path):
    (tmp_path / 'a.png').write_bytes(encoded('.png'))
    (tmp_path / 'labels.png').write_bytes(encoded('.png')[:2000])
    guard = TRANSFORMS.build(dict(type='GuardSamples', transforms=[
        dict(type='LoadCheckedImage'), dict(type='LoadLabelMap', num_classes=3)]))
    sample = dict(img_path=f'{tmp_path}/a.png', seg_map_path=f'{tmp_path}/labels.png', reduce_zero_label=False,
                  seg_fields=[])
    with pytest.raises(ValueError, match=r'bad sample: .*/labels\.png cannot be read: .*truncated'):
        guard.transform(sample)


def test_guard_counts_what_it_skips(tmp_path, warnings_of):
    guard = TRANSFORMS.build(dict(GUARDED, on_bad='skip'))
    (tmp_path / 'a.jpg').write_bytes(encoded('.jpg'))
    assert guard.transform(dict(img_path=str(tmp_path / 'a.jpg'), instances=[]))['img'].shape == (40, 60, 3)
    for number in (1, 2):
        assert guard.transform(dict(img_path=str(tmp_path / 'no.jpg'), instances=[])) is None
        assert guard.skipped.sum() == number
    assert [line.split(': ')[0] for line in warnings_of()] == [
        f'bad sample skipped ({number} in this process so far)' for number in (1, 2)]


def test_unknown_policies():
    for make in (lambda: GuardSamples([], on_bad='ignore'), lambda: BadDataHook(on_nan='ignore'),
                 lambda: DATASETS.build(dict(type='CheckedCocoDataset', on_bad_annotation='ignore'))):
        with pytest.raises(ValueError, match="='ignore': choose 'raise'"):
            make()


def guarded_config(tiny_config, coco_root, work_dir, on_bad: str, max_iters: int = 6):
    """A detector's config with a guarded pipeline, no validation, and the hook."""
    cfg = point_to(tiny_config(), coco_root, work_dir, max_iters)
    cfg.train_dataloader.dataset.pipeline[:2] = [dict(GUARDED, on_bad=on_bad)]
    cfg.custom_hooks.append(dict(type='BadDataHook'))
    cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    return cfg


def truncate(root, *names: str) -> None:
    for name in names:
        path = root / 'train' / name
        path.write_bytes(path.read_bytes()[:-300])


def test_training_goes_on_without_a_broken_image(tiny_config, coco_root, tmp_path):
    truncate(coco_root, '1.jpg', '4.jpg')
    runner = run(guarded_config(tiny_config, coco_root, tmp_path / 'work', 'skip'))
    losses = losses_of(tmp_path / 'work')
    assert len(losses) == 6 and np.isfinite(losses).all()
    guard, = find_guards(runner.train_dataloader.dataset)
    skipped = int(guard.skipped.sum())
    assert skipped >= 4  # 12 samples of 6 images are wanted, each bad one comes twice
    log = next((tmp_path / 'work').rglob('*.log')).read_text()
    assert log.count('bad sample skipped (') == skipped and 'failed to load image: ' in log and 'train/4.jpg' in log
    assert f'skipped so far: {skipped} bad samples, 0 optimiser steps' in log


def test_workers_count_together(tiny_config, coco_root, tmp_path):
    truncate(coco_root, '1.jpg', '4.jpg')
    cfg = guarded_config(tiny_config, coco_root, tmp_path / 'work', 'skip').train_dataloader
    cfg.update(num_workers=2, sampler=dict(type='DefaultSampler', shuffle=False))
    loader = Runner.build_dataloader(cfg, seed=0)
    names = [sample.img_path for batch in loader for sample in batch['data_samples']]
    assert len(names) == 6 and not any(name.endswith(('1.jpg', '4.jpg')) for name in names)
    guard, = find_guards(loader.dataset)
    assert guard.skipped[0] == 0 and guard.skipped[1] > 0 and guard.skipped.sum() >= 2


def test_training_stops_with_the_name_of_a_broken_image(tiny_config, coco_root, tmp_path):
    truncate(coco_root, *(f'{index}.jpg' for index in range(6)))
    with pytest.raises(ValueError, match=r"bad sample: .*train/\d\.jpg\. Repair or .*on_bad='skip'"):
        run(guarded_config(tiny_config, coco_root, tmp_path / 'work', 'raise'))


# ---- annotations ----
GOOD = dict(id=1, image_id=1, category_id=1, bbox=[5, 5, 30, 20], area=600, iscrowd=0,
            segmentation=[[5, 5, 35, 5, 35, 25, 5, 25]])
BAD = {
    'outside the image': dict(bbox=[200, 5, 30, 20]),
    'without area (a side below 1 px)': dict(bbox=[5, 5, 0, 20]),
    'of categories that the file does not define': dict(category_id=77),
    'with a box that is not four finite numbers': dict(bbox=[5, float('nan'), 30, 20]),
    'incomplete': dict(bbox=None),
}


def write_annotations(root, annotations: list[dict], classes=CLASSES) -> dict:
    """Files of one image of 128 x 96 px; returns the dataset's config."""
    (root / 'train').mkdir(parents=True)
    cv2.imwrite(str(root / 'train/a.png'), np.full((96, 128, 3), 90, np.uint8))
    content = dict(images=[dict(id=1, file_name='a.png', height=96, width=128)], annotations=annotations,
                   categories=[dict(id=index, name=name) for index, name in enumerate(classes, start=1)])
    (root / 'a.json').write_text(json.dumps(content))
    return dict(type='CheckedCocoDataset', data_root=str(root), ann_file='a.json', data_prefix=dict(img='train/'),
                metainfo=dict(classes=CLASSES), pipeline=[])


def bad_annotations() -> list[dict]:
    annotations = [GOOD]
    for number, change in enumerate(BAD.values(), start=2):
        annotations.append({key: value for key, value in {**GOOD, 'id': number, **change}.items() if value is not None})
    return annotations


@pytest.mark.parametrize('kind', BAD)
def test_a_bad_annotation_is_named(kind, tmp_path):
    number = 2 + list(BAD).index(kind)
    cfg = write_annotations(tmp_path, [GOOD, bad_annotations()[number - 1]])
    with pytest.raises(ValueError) as error:
        DATASETS.build(cfg)
    assert str(error.value).startswith(f'{tmp_path}/a.json: annotation {number} of a.png, ')
    assert f': {kind}. ' in str(error.value)


def test_bad_annotations_are_counted(tmp_path, warnings_of):
    double = bad_annotations() + [{**GOOD, 'id': 9, 'bbox': [-50, 0, 20, 20]}]
    dataset = DATASETS.build(dict(write_annotations(tmp_path, double), on_bad_annotation='skip'))
    assert len(dataset.get_data_info(0)['instances']) == 1
    lines = warnings_of()
    assert [line.split(': ')[1].split('; ')[0] for line in lines] == [
        f'{2 if kind.startswith("outside") else 1} annotations left out, {kind}' for kind in BAD]
    assert 'the first: annotation 2 of a.png, bbox [200, 5, 30, 20] in 128x96 px' in lines[0]


def test_the_good_ones_are_mmdetections(tmp_path):
    """Boxes that cross the border, crowds, ignored ones, and categories that the dataset leaves out on purpose."""
    annotations = [GOOD, {**GOOD, 'id': 2, 'bbox': [-5, -5, 30, 20]}, {**GOOD, 'id': 3, 'iscrowd': 1},
                   {**GOOD, 'id': 4, 'ignore': True, 'bbox': [500, 0, 1, 1]}, {**GOOD, 'id': 5, 'category_id': 6}]
    cfg = write_annotations(tmp_path, annotations, classes=(*CLASSES, 'other'))
    checked, plain = (DATASETS.build(dict(cfg, type=name)) for name in ('CheckedCocoDataset', 'CocoDataset'))
    assert checked.get_data_info(0) == plain.get_data_info(0)
    assert len(checked.get_data_info(0)['instances']) == 3


def test_a_class_that_the_file_lacks(tmp_path):
    """mmdetection would give all later classes the label of the one before."""
    cfg = write_annotations(tmp_path, [GOOD], classes=('ball', 'kite'))
    with pytest.raises(ValueError, match=r"a\.json defines no category \['crate', 'lifebuoy', 'starfish'\]: metainfo"):
        DATASETS.build(cfg)


@pytest.mark.parametrize(('classes', 'policy', 'said'), [(('ball', 'kite'), 'raise', 'defines no category'),
                                                         (CLASSES, 'ignore', "choose 'raise'")])
def test_the_tools_print_one_message(classes, policy, said, tmp_path, capsys):
    cfg = write_annotations(tmp_path, [GOOD], classes) | dict(on_bad_annotation=policy)
    assert launch.run_tool(lambda: DATASETS.build(cfg)) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and said in error


def test_an_image_with_nothing_but_a_crowd(tiny_config, tmp_path):
    data = tmp_path / 'data'
    dataset = write_annotations(data, [{**GOOD, 'iscrowd': 1}])
    cfg = guarded_config(tiny_config, data, tmp_path / 'work', 'raise', max_iters=2)
    cfg.train_dataloader.dataset.update({key: dataset[key] for key in ('type', 'ann_file', 'data_root')})
    run(cfg)
    losses = losses_of(tmp_path / 'work')
    assert len(losses) == 2 and np.isfinite(losses).all()
