"""Predictions: those of the packages' own functions, whatever they are asked for; and what is no picture."""
import copy
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector
from mmengine.registry import VISUALIZERS, DefaultScope
from mmseg.apis import inference_model
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

import apt_dense
from apt_dense.mm.errors import DataError
from apt_dense.mm.inference import CocoIds, Model
from apt_dense.mm.inference.coco_ids import image_id_of
from tests.mm.inference.conftest import NAMES, picture

TASKS = ('det', 'seg')


@pytest.fixture(scope='module')
def models(checkpoints):
    """By task; the detector shows every box, since it is sure of nothing."""
    loaded = {task: apt_dense.load(path) for task, path in checkpoints.items()}
    loaded['det'].module.roi_head.test_cfg.score_thr = 0.0
    return loaded


def with_own_score(result):
    """The boxes whose score differs from both neighbours'; of the last, one is not known.

    An untrained detector gives boxes on flat parts of a picture the same score.  Their order is chance: a batch rounds
    otherwise than a single picture.
    """
    apart = -np.diff(result.scores) > 1e-6
    return np.flatnonzero(apart & np.append(True, apart[:-1]))


def same(first, second):
    """Equal up to rounding, and up to the order of boxes that share their score."""
    if first.boxes is None:
        return np.array_equal(first.label_map, second.label_map)
    if len(first) != len(second) or not np.allclose(first.scores, second.scores, atol=1e-5):
        return False
    sure = with_own_score(first)
    return (np.allclose(first.boxes[sure], second.boxes[sure], atol=1e-3) and
            np.array_equal(first.labels[sure], second.labels[sure]) and
            np.array_equal(first.masks[sure], second.masks[sure]))


def test_detections_are_mmdetections(models, folder):
    model = models['det']
    results = model.predict(folder)
    assert [result.name for result in results] == [str(folder / name) for name in NAMES]
    model.module.cfg = model.cfg
    for result in results:
        wanted = inference_detector(model.module, result.name).pred_instances
        assert len(result) == len(wanted) > 3
        order = wanted.scores.argsort(descending=True, stable=True)
        assert np.array_equal(result.boxes, wanted.bboxes[order]) and np.array_equal(result.labels,
                                                                                     wanted.labels[order])
        assert np.array_equal(result.masks, np.asarray(wanted.masks)[order]) and result.masks.dtype == bool
        assert result.masks.shape[1:] == result.size
        assert result.names == [model.classes[label] for label in result.labels]
        assert (np.diff(result.scores) <= 0).all() and result.label_map is None


def test_label_maps_are_mmsegmentations(models, folder):
    model = models['seg']
    model.module.cfg = copy.deepcopy(model.cfg)
    model.module.cfg.test_pipeline = model.cfg.test_dataloader.dataset.pipeline  # where mmsegmentation looks
    for result in model.predict(str(folder)):
        with DefaultScope.overwrite_default_scope('mmseg'):
            wanted = inference_model(model.module, result.name).pred_sem_seg.data[0]
        assert np.array_equal(result.label_map, wanted) and result.label_map.shape == result.size
        assert set(result.names) == {model.classes[label] for label in wanted.unique()} and result.boxes is None


@pytest.mark.parametrize('task', TASKS)
def test_every_kind_of_source(task, models, folder):
    """Paths, arrays in RGB, PIL images, lists of all of them, one by one and in batches."""
    model, paths = models[task], [folder / name for name in NAMES[:2]]
    wanted = [model.predict(path)[0] for path in paths]
    assert task == 'seg' or all(len(with_own_score(result)) > 5 for result in wanted)
    images = [Image.open(path) for path in paths]
    arrays = [np.asarray(image) for image in images]
    grey = np.full((50, 70), 90, np.uint8)
    for source, batch_size in ((paths, 2), (list(map(str, paths)), 1), (tuple(images), 5), ([paths[0], arrays[1]], 2),
                               (arrays, 1)):
        found = model.predict(source, batch_size=batch_size)
        assert len(found) == 2 and all(map(same, found, wanted)), (type(source), batch_size)
        assert [result.tokens.num_tokens for result in found] == [result.tokens.num_tokens for result in wanted]
    assert [result.name for result in found] == ['array 0', 'array 1']
    assert same(model.predict(grey)[0], model.predict(np.stack([grey] * 3, -1))[0])
    assert same(model.predict(arrays[0][..., ::-1])[0], wanted[0]) is False  # BGR is another picture
    alpha = np.full(arrays[0].shape[:2], 90, np.uint8)
    assert same(model.predict(np.dstack([arrays[0], alpha]))[0], wanted[0])
    deep = arrays[0].astype(np.uint16) * 257
    assert same(model.predict(deep)[0], wanted[0])


@pytest.mark.parametrize('mode', ['L', 'I;16', 'I', 'F', 'P', '1', 'LA', 'CMYK'])
def test_pil_images_are_what_their_files_are(mode, models, folder, tmp_path):
    """Deep ones too, whose values Pillow's own conversion cuts off at 255."""
    image = Image.open(folder / 'a.png')
    if mode in ('I;16', 'I'):
        values = np.asarray(image.convert('L')).astype(np.uint16) * 257
        image = Image.fromarray(values if mode == 'I;16' else values.astype(np.int32))
    else:
        image = image.convert('L' if mode == 'F' else 'RGB').convert(mode)
    assert image.mode == mode
    path = tmp_path / ('a.tif' if mode == 'CMYK' else 'a.png')
    kind = dict(F=np.uint8, I=np.uint16).get(mode)
    (Image.fromarray(np.asarray(image).astype(kind)) if kind else image).save(path)
    assert same(models['seg'].predict(image)[0], models['seg'].predict(path)[0])


@pytest.mark.parametrize('task', TASKS)
def test_a_picture_of_few_bits_is_drawn_as_it_is_predicted(task, checkpoints, folder, tmp_path):
    """The config says how many of 16 bits count; nothing else reads such a file."""
    eight = np.asarray(Image.open(folder / 'a.png').convert('L'))
    Image.fromarray(eight.astype(np.uint16) << 4).save(tmp_path / 'deep.png')
    Image.fromarray(eight).save(tmp_path / 'plain.png')
    model = apt_dense.load(checkpoints[task])
    model.cfg.test_dataloader.dataset.pipeline[0].bits = 12
    model = Model(model.module, model.cfg)
    deep, plain = (model.predict(tmp_path / name)[0] for name in ('deep.png', 'plain.png'))
    assert same(deep, plain) and deep.draw() == plain.draw() and deep.pixels() == plain.pixels()
    assert deep.draw_patches() == plain.draw_patches()


@pytest.mark.parametrize('task', TASKS)
def test_a_result_is_shown_in_one_line(task, models, folder):
    """It printed the pixels of its masks."""
    result, = models[task].predict(folder / 'a.png')
    shown = repr(result)
    assert shown.startswith(f"Result('{folder}/a.png', 96 x 128 px, ") and '\n' not in shown and 'array' not in shown
    what = f'{len(result.boxes)} boxes: ' if task == 'det' else f'{len(result.names)} classes: '
    assert f'{what}{result.names[0]}' in shown and shown.endswith(f'{result.tokens.kept:.1%} of the tokens kept)')
    tokens = result.tokens
    assert repr(tokens) == f'Tokens({tokens.num_tokens} of {tokens.num_cells}, {tokens.kept:.1%} kept)'


def test_generators(models, folder):
    paths = [folder / name for name in NAMES]
    wanted = models['seg'].predict(paths)
    for source in ((path for path in paths), iter(paths), map(str, paths)):
        found = models['seg'].predict(source)
        assert len(found) == 3 and all(map(same, found, wanted))
    assert models['det'].predict([]) == models['det'].predict(iter([])) == []
    assert len(models['det'].predict(paths, batch_size=np.int64(2))) == 3


@pytest.mark.parametrize(('task', 'orientation'), [('det', 6), ('seg', 3), ('seg', 6), ('seg', 8)])
def test_pictures_that_exif_turns(task, orientation, models, tmp_path):
    upright = picture(96, 128)
    turned = Image.fromarray(upright).rotate({3: 180, 6: 90, 8: -90}[orientation], expand=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / 'turned.png', exif=exif)
    result = models[task].predict(tmp_path / 'turned.png')[0]
    assert result.size == (96, 128) and same(result, models[task].predict(upright)[0])
    assert result.draw().size == (128, 96)
    assert same(models[task].predict(Image.open(tmp_path / 'turned.png'))[0], result)


@pytest.mark.parametrize('task', TASKS)
def test_odd_sizes(task, models):
    for size in ((1, 1), (1, 300), (700, 20), (16, 16), (131, 77)):
        result = models[task].predict(picture(60, 60)[:1, :1].repeat(size[0], 0).repeat(size[1], 1))[0]
        assert result.size == size and 0 < result.tokens.kept <= 1
        if task == 'seg':
            assert result.label_map.shape == size


def test_a_video(models, tmp_path):
    path = tmp_path / 'film.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 5, (128, 96))
    for seed in range(4):
        writer.write(picture(96, 128, seed)[..., ::-1])
    writer.release()
    stream = models['seg'].stream(path)
    results = [next(stream), *stream]
    assert [result.name for result in results] == [f'{path}#{number}' for number in range(4)]
    capture = cv2.VideoCapture(str(path))
    frames = [capture.read()[1][..., ::-1] for _ in range(4)]
    assert all(map(same, results, models['seg'].predict(frames)))
    assert results[0].draw().size == (128, 96)


def test_tokens_of_a_picture(models):
    """Smooth on the left, noise on the right; padding counts for nothing."""
    image = np.full((96, 128, 3), 90, np.uint8)
    image[:, 64:] = np.random.default_rng(0).integers(0, 255, (96, 64, 3))
    tokens = models['det'].predict(image)[0].tokens
    (grid,) = tokens.grids
    assert grid.corner_px == (0, 0) and grid.patch_px.shape == (12, 16) or grid.patch_px.shape == (6, 8)
    columns = grid.patch_px.shape[1] // 2
    assert (grid.patch_px[:, :columns - 1] > 16).all() and (grid.patch_px[:, columns + 1:] == 16).all()
    areas = 256 / grid.patch_px.astype(float)**2
    assert tokens.num_cells == grid.patch_px.size and tokens.num_tokens == pytest.approx(areas.sum(), abs=2)
    assert 0.4 < tokens.kept < 0.75
    wide = models['seg'].predict(image.repeat(3, 1))[0].tokens
    assert len(wide.grids) > 1 and wide.grids[1].corner_px[1] > 0  # the windows of slide inference
    assert wide.num_cells == sum(grid.patch_px.size for grid in wide.grids)


@pytest.mark.parametrize('task', TASKS)
def test_drawings(task, models, folder, tmp_path):
    result = models[task].predict(folder / 'a.png')[0]
    plain = np.asarray(Image.open(folder / 'a.png')).astype(int)

    def changed(image):
        return (np.abs(np.asarray(image) - plain) > 8).any(-1).mean()

    image = result.draw(tmp_path / 'new/a.png', min_score=0.0)
    assert image.size == (128, 96) and np.array_equal(np.asarray(Image.open(tmp_path / 'new/a.png')), np.asarray(image))
    assert changed(image) > 0.05
    if task == 'det':
        assert changed(result.draw(min_score=1.0)) < changed(image) / 2


@pytest.mark.parametrize('task', TASKS)
def test_drawing_writes_nothing_beside_a_run_that_does(task, checkpoints, tmp_path):
    """mmengine keeps one visualiser for a name: that of a training would save each picture beside its original."""
    model = apt_dense.load(checkpoints[task])
    with DefaultScope.overwrite_default_scope(model.cfg.default_scope):
        model.cfg.visualizer.name = f'of a training in {tmp_path}'
        VISUALIZERS.build({**model.cfg.visualizer, 'vis_backends': [dict(type='LocalVisBackend')],
                           'save_dir': str(tmp_path / 'run')})
    (tmp_path / 'pictures').mkdir()
    Image.fromarray(picture(60, 80)).save(tmp_path / 'pictures/a.png')
    model.predict(tmp_path / 'pictures')[0].draw()
    assert [path.name for path in (tmp_path / 'pictures').iterdir()] == ['a.png']


def test_coco_and_dict(models, folder):
    result = models['det'].predict(folder / 'a.png')[0]
    entries = json.loads(json.dumps(result.to_coco(7, category_ids=[3, 1, 2, 9, 8])))
    assert len(entries) == len(result) and {entry['image_id'] for entry in entries} == {7}
    for entry, box, label, mask in zip(entries, result.boxes, result.labels, result.masks, strict=True):
        x, y, w, h = entry['bbox']
        np.testing.assert_allclose([x, y, x + w, y + h], box, rtol=1e-5)
        assert entry['category_id'] == [3, 1, 2, 9, 8][label]
        assert np.array_equal(coco_masks.decode(entry['segmentation']), mask)
    assert result.to_coco()[0]['image_id'] == 1 and result.to_coco()[0]['category_id'] == result.labels[0] + 1
    with pytest.raises(ValueError, match='got category_ids=5, wanted a list, one for each of the classes'):
        result.to_coco(category_ids=5)
    for name in ('a.mpg', 'a.txt', 'a'):  # Pillow knows some endings for reading alone
        with pytest.raises(DataError, match=f'{name} has no ending of a picture'):
            result.draw(name)
    with pytest.raises(ValueError, match='got 2 category_ids for 5 classes'):
        result.to_coco(category_ids=[1, 2])
    content = json.loads(json.dumps(result.to_dict()))
    assert len(content['objects']) == len(result) and content['tokens']['kept'] == result.tokens.kept
    segmented = models['seg'].predict(folder / 'a.png')[0]
    masks = [coco_masks.decode(entry['segmentation']) for entry in segmented.to_coco()]
    assert (sum(masks) == 1).all()  # every pixel has one class
    content = json.loads(json.dumps(segmented.to_dict()))
    assert sum(entry['share'] for entry in content['classes']) == pytest.approx(1)


def test_coco_ids(models, folder, tmp_path):
    """Whole numbers: those of the dataset, those in the files' names, or the place of a picture."""
    (tmp_path / 'val').mkdir()
    names = ['000000000139.png', 'street.png', '12.5.png']
    for name in names:
        shutil.copy(folder / 'a.png', tmp_path / 'val' / name)
    results = models['det'].predict([tmp_path / 'val' / name for name in names], batch_size=2)
    assert [result.to_coco()[0]['image_id'] for result in results] == [139, 2, 3]
    assert [image_id_of(name, 7) for name in ('film.mp4#3', '12.mp4#3', 'array 0', '12.jpg')] == [7, 7, 7, 12]
    classes = models['det'].classes
    content = dict(images=[dict(id=number, file_name=name) for number, name in zip((5, 900, 7), names, strict=True)],
                   categories=[dict(id=90 - index, name=name) for index, name in enumerate((*classes, 'more'))])
    (tmp_path / 'val.json').write_text(json.dumps(content))
    ids = CocoIds(tmp_path / 'val.json')
    found = [entry for result in results for entry in result.to_coco(ids=ids)]
    assert sorted({entry['image_id'] for entry in found}) == [5, 7, 900]
    assert found[0]['category_id'] == 90 - results[0].labels[0]
    coco = COCO()
    coco.dataset = content | dict(annotations=[])
    coco.createIndex()
    assert len(coco.loadRes(found).anns) == len(found) == sum(map(len, results))
    with pytest.raises(DataError, match=r"a\.png is no picture of .*val\.json, whose pictures are named like 00000000"):
        models['det'].predict(folder / 'a.png')[0].to_coco(ids=ids)
    content['categories'] = content['categories'][1:]
    (tmp_path / 'val.json').write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"the model has the class '{classes[0]}', which .*val.json has not"):
        results[0].to_coco(ids=CocoIds(tmp_path / 'val.json'))


@pytest.mark.parametrize(('content', 'message'), [
    ('[]', 'is a list, not an object'), ('{"images": []}', 'has 0 images and 0 categories'), ('', 'is empty'),
    ('{"images": [{"id": 1}], "categories": []}', "has an image or a category without 'file_name'"),
])
def test_ids_of_what_is_no_dataset(content, message, tmp_path):
    (tmp_path / 'a.json').write_text(content)
    with pytest.raises(DataError, match=rf'a\.json .*{message}'):
        CocoIds(tmp_path / 'a.json')


def test_supervision(models, folder):
    supervision = pytest.importorskip('supervision')
    result = models['det'].predict(folder / 'a.png')[0]
    detections = result.to_supervision()
    assert isinstance(detections, supervision.Detections) and len(detections) == len(result)
    assert np.array_equal(detections.xyxy, result.boxes) and list(detections.data['class_name']) == result.names
    segmented = models['seg'].predict(folder / 'a.png')[0]
    detections = segmented.to_supervision()
    assert len(detections) == len(segmented) and detections.mask.any((1, 2)).all()


@pytest.mark.parametrize(('source', 'message'), [
    ('missing.jpg', 'missing.jpg does not exist'),
    ('text.jpg', 'text.jpg cannot be read as a picture'),
    ('empty', 'empty holds no image'),
    ('film.mp4', 'film.mp4 cannot be read as a video'),
    ('https://example.org/a.jpg', 'is an address: download it'),
    (5, 'got int to predict, wanted a path'),
    (torch.zeros(3, 8, 8), 'got Tensor to predict, wanted a path'),
    (np.zeros((3, 8, 9), np.uint8), r'array 0 has shape \(3, 8, 9\), wanted \(H, W, 3\).*channels last'),
    (np.zeros((2, 8, 9, 3), np.uint8), r'batch as a list'),
    (np.zeros((0, 9, 3), np.uint8), r'has shape \(0, 9, 3\)'),
    (np.random.default_rng(0).random((8, 9, 3)), 'multiply by 255'),
    (np.full((8, 9, 3), -1), 'array 0 holds int64 values from -1'),
])
def test_what_is_no_picture(source, message, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    for name in ('text.jpg', 'film.mp4'):
        (tmp_path / name).write_text('no picture')
    for task in TASKS:
        with pytest.raises(DataError, match=message):
            models[task].predict(source)


def test_a_batch_size_that_makes_no_sense(models, folder):
    with pytest.raises(DataError, match='batch_size=0 must be a whole number from 1 on'):
        models['det'].predict(folder, batch_size=0)


def test_what_follows_a_bad_picture_is_not_lost(models, folder, tmp_path):
    """A stream gives what came before, and names what it stops at."""
    (tmp_path / 'b.jpg').write_text('no picture')
    stream = models['seg'].stream([folder / 'a.png', tmp_path / 'b.jpg'])
    assert next(stream).name.endswith('a.png')
    with pytest.raises(DataError, match='b.jpg cannot be read'):
        next(stream)
