"""tools/demo/make_demo_dataset.py: the files fit each other, are reproducible and never half-written."""
import json
import sys

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from tests.locations import load_tool

demo = load_tool('demo/make_demo_dataset.py')
scenes = sys.modules['scenes']  # which it has imported

NUM_TRAIN, NUM_VAL = 26, 25


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A dataset whose splits both reach the first empty scene, number 24."""
    out = tmp_path_factory.mktemp('data') / 'demo'
    assert demo.make_dataset(out, NUM_TRAIN, NUM_VAL)
    return out


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def annotations_without_ids(root, split):
    coco = json.loads((root / f'annotations/instances_{split}.json').read_text())
    return [{key: value for key, value in annotation.items() if key != 'id'} for annotation in coco['annotations']]


@pytest.mark.parametrize('split, num_scenes', [('train', NUM_TRAIN), ('val', NUM_VAL)])
def test_masks_boxes_and_label_maps_agree(root, split, num_scenes):
    coco = COCO(root / f'annotations/instances_{split}.json')
    assert [category['name'] for category in coco.loadCats([1, 2, 3, 4, 5])] == list(demo.CLASSES)
    assert len(coco.imgs) == num_scenes == len(list((root / split).iterdir()))
    for image_id, info in coco.imgs.items():
        image = cv2.imread(str(root / split / info['file_name']))
        labels = cv2.imread(str(root / 'semantic' / split / info['file_name'].replace('.jpg', '.png')), -1)
        assert labels.dtype == np.uint8
        assert labels.shape == image.shape[:2] == (info['height'], info['width'])
        assert 192 <= min(labels.shape) <= max(labels.shape) <= 320
        union = np.zeros_like(labels)
        for annotation in coco.imgToAnns[image_id]:
            mask = coco.annToMask(annotation)
            rows, cols = np.nonzero(mask)
            left, top = cols.min(), rows.min()
            assert annotation['bbox'] == [left, top, cols.max() - left + 1, rows.max() - top + 1]
            assert annotation['area'] == mask.sum()
            assert annotation['iscrowd'] == 0
            assert not union[mask > 0].any()  # the masks are of visible parts: no pixel has two owners
            union += mask * annotation['category_id']
        assert (labels == union).all()
    ids = [annotation['id'] for annotation in coco.anns.values()]
    assert ids == list(range(1, len(ids) + 1))


def test_only_every_25th_scene_is_empty(root):
    for split in demo.SPLITS:
        coco = COCO(root / f'annotations/instances_{split}.json')
        assert [image_id for image_id in coco.imgs if not coco.imgToAnns[image_id]] == [25]
        assert max(len(annotations) for annotations in coco.imgToAnns.values()) <= 8


def test_mmdet_loads_the_masks_exactly(root):
    CocoDataset = pytest.importorskip('mmdet.datasets').CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations
    dataset = CocoDataset(ann_file=str(root / 'annotations/instances_val.json'), metainfo={'classes': demo.CLASSES},
                          data_prefix={'img': str(root / 'val')}, pipeline=[])
    assert len(dataset) == NUM_VAL
    for sample in dataset:
        labels = cv2.imread(sample['img_path'].replace('/val/', '/semantic/val/').replace('.jpg', '.png'), -1)
        sample['ori_shape'] = labels.shape
        sample = LoadAnnotations(with_bbox=True, with_mask=True)(sample)
        assert not sample['gt_ignore_flags'].any()
        masks = sample['gt_masks'].masks
        assert ((masks * (sample['gt_bboxes_labels'] + 1)[:, None, None]).sum(0) == labels).all()


def test_masks_lie_on_the_drawn_objects(monkeypatch):
    """On a grey ground a shadow is grey too, so what is colourful must be an object."""
    def grey(rng, photos, height, width):
        return np.full((height, width, 3), 128, np.float32)

    monkeypatch.setattr(scenes, 'BACKGROUNDS', ((grey, 1.0),))
    photos = demo.load_photos('val')
    for index in range(12):
        scene = demo.make_scene(3, 'val', index, photos)
        colourful = np.ptp(scene.image.astype(int), axis=2) > 40
        near = cv2.dilate((scene.object_ids > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0  # the soft edge
        assert not (colourful & ~near).any()
        for number, category_id in enumerate(scene.category_ids, start=1):
            # Of a lifebuoy a half is white, of a crate the gaps are nearly black.
            share = colourful[scene.object_ids == number].mean()
            assert share > 0.3, (index, demo.CLASSES[category_id - 1], share)


def test_objects_stay_visible_and_touch_the_border():
    rng = np.random.default_rng(0)
    mask = np.ones((60, 40), bool)
    free = np.zeros((2 * scenes.MARGIN_PX + 100, 2 * scenes.MARGIN_PX + 90), np.uint8)
    areas = [int(scenes.find_place(rng, free, mask, [])[0][scenes.INSIDE].sum()) for _ in range(50)]
    assert min(areas) >= scenes.MIN_VISIBLE * mask.sum()
    assert min(areas) < mask.sum()
    assert scenes.find_place(rng, np.ones_like(free), mask, [10**4]) is None  # nowhere but wholly inside another
    assert scenes.find_place(rng, np.pad(np.ones((100, 90), np.uint8), scenes.MARGIN_PX), mask, [10**4]) is None


def test_same_arguments_give_the_same_bytes(tmp_path):
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        demo.make_dataset(tmp_path / name, 3, 2, seed)
    first, again, other = (contents(tmp_path / name) for name in 'abc')
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if name != 'LICENSE.txt')
    assert not any(path.name.startswith('.') for path in tmp_path.iterdir())


def test_scenes_do_not_depend_on_their_number(root, tmp_path):
    demo.make_dataset(tmp_path / 'few', 3, 1)
    many = contents(root)
    few = {name: data for name, data in contents(tmp_path / 'few').items() if name.endswith(('.jpg', '.png'))}
    assert len(few) == 8
    assert all(many[name] == data for name, data in few.items())
    wanted = [annotation for annotation in annotations_without_ids(root, 'train') if annotation['image_id'] <= 3]
    assert annotations_without_ids(tmp_path / 'few', 'train') == wanted


def test_splits_share_no_photograph():
    train, val = ({photo.tobytes() for photo in demo.load_photos(split)} for split in demo.SPLITS)
    assert len(train) == len(demo.PHOTOS['train']) and len(val) == len(demo.PHOTOS['val'])
    assert not train & val
    assert all(name in demo.license_text() for split in demo.SPLITS for name in demo.PHOTOS[split])


def test_a_made_dataset_is_left_alone_unless_forced(tmp_path, capsys):
    args = ['--out', str(tmp_path / 'deep/demo'), '--num-train', '2', '--num-val', '1']
    demo.main(args)
    marker = tmp_path / 'deep/demo/marker'
    marker.touch()
    demo.main(args)
    assert 'is there already' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='2'):
        demo.main([*args, '--seed', '5'])
    assert "'seed': 0}; wanted all files of" in (text := capsys.readouterr().err) and '--force' in text
    assert marker.exists()
    demo.main([*args, '--seed', '5', '--force'])
    assert not marker.exists()
    assert json.loads((tmp_path / 'deep/demo/meta.json').read_text())['seed'] == 5


def test_an_incomplete_dataset_is_noticed(tmp_path):
    demo.make_dataset(tmp_path / 'demo', 2, 1)
    before = contents(tmp_path / 'demo')
    (tmp_path / 'demo/semantic/train/000001.png').unlink()
    with pytest.raises(FileExistsError, match='lacks 1 of its files, such as semantic/train/000001.png.*--force'):
        demo.make_dataset(tmp_path / 'demo', 2, 1)
    assert demo.make_dataset(tmp_path / 'demo', 2, 1, force=True)
    assert contents(tmp_path / 'demo') == before


@pytest.mark.parametrize('error', [OSError('disk full'), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_half_written(tmp_path, monkeypatch, error):
    demo.make_dataset(tmp_path / 'old', 1, 1)
    before = contents(tmp_path)
    write_split = demo.write_split

    def fail_in_val(root, split, *arguments):
        write_split(root, split, *arguments)
        if split == 'val':
            raise error

    monkeypatch.setattr(demo, 'write_split', fail_in_val)
    for name in ('fresh', 'old'):
        with pytest.raises(type(error)):
            demo.make_dataset(tmp_path / name, 2, 1, force=True)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ['old']


@pytest.mark.parametrize('wrong', [{'num_train': 0}, {'num_val': -1}, {'seed': -2}])
def test_wrong_numbers(tmp_path, wrong):
    (name, value), = wrong.items()
    with pytest.raises(ValueError, match=f'{name}={value}: want a whole number of at least'):
        demo.make_dataset(tmp_path / 'demo', **wrong)
    assert not any(tmp_path.iterdir())


def test_other_peoples_files_are_never_replaced(tmp_path):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder/meta.json').write_text('{"generator": "something else"}')
    before = contents(tmp_path)
    for name in ('file', 'folder'):
        with pytest.raises(FileExistsError, match='is not a demo dataset.*give another --out'):
            demo.make_dataset(tmp_path / name, 1, 1, force=True)
    assert contents(tmp_path) == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / 'demo').mkdir()
    assert demo.make_dataset(tmp_path / 'demo', 1, 1)
    assert not demo.make_dataset(tmp_path / 'demo', 1, 1)


def test_missing_photographs_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(demo.PHOTOS, 'train', {'no_such.png': ''})
    with pytest.raises(FileNotFoundError, match='no_such.png: scikit-image 0.26 ships it'):
        demo.make_dataset(tmp_path / 'demo', 1, 1)
    monkeypatch.setattr(scenes.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match='pip install scikit-image'):
        demo.make_dataset(tmp_path / 'demo', 1, 1)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('recipe, longest', [('scenes_384', 384), ('scenes_192', 192)])
def test_the_harder_recipes(tmp_path, recipe, longest):
    demo.main(['--out', str(tmp_path / recipe), '--num-train', '8', '--num-val', '2', '--recipe', recipe])
    coco = COCO(tmp_path / recipe / 'annotations/instances_train.json')
    sides = [(info['height'], info['width']) for info in coco.imgs.values()]
    assert {max(side) for side in sides} == {longest}
    assert len(set(sides)) > 4 and longest * 2 // 3 <= min(map(min, sides)) < longest
    assert {height > width for height, width in sides} == {True, False}
    boxes = [annotation['bbox'][2:] for annotation in coco.anns.values()]
    assert min(map(max, boxes)) < longest / 12 and max(map(max, boxes)) > longest / 4
    assert max(len(annotations) for annotations in coco.imgToAnns.values()) > 8
    assert min(annotation['area'] for annotation in coco.anns.values()) > 0
    assert json.loads((tmp_path / recipe / 'meta.json').read_text())['recipe'] == recipe


def test_the_largest_objects_fit_into_the_margin():
    """A square crate of the largest size, turned by 45 degrees, with its shadow, at the border."""
    longest = max(recipe.object_px[1] for recipe in scenes.RECIPES.values())
    side = int(longest * 2**0.5) + 3
    reach = round(0.05 * side)
    assert side // 4 + 4 * reach <= scenes.MARGIN_PX


def test_recipes_are_not_mistaken_for_each_other(tmp_path):
    demo.make_dataset(tmp_path / 'data', 1, 1)
    assert 'recipe' not in json.loads((tmp_path / 'data/meta.json').read_text())
    with pytest.raises(FileExistsError, match='was made with.*--force'):
        demo.make_dataset(tmp_path / 'data', 1, 1, recipe='scenes_192')
    with pytest.raises(ValueError, match=r"recipe='no': choose one of \['demo', 'scenes_192', 'scenes_384'\]"):
        demo.make_dataset(tmp_path / 'other', 1, 1, recipe='no')
