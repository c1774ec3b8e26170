"""COCO files as people have them: mended, named or refused, the same for dataset and metric."""
import json
import logging

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, METRICS
from mmengine.logging import MMLogger
from pycocotools import mask as mask_api

import apt_dense.mm.det  # noqa: F401
from apt_dense.mm.data.coco_file import CocoFile
from apt_dense.mm.data.coco_masks import decode_counts
from apt_dense.mm.errors import DataError
from tests.mm.preflight.coco_files import CLASSES, HEIGHT, WIDTH, annotation, coco, dataset, write

SQUARE = [[5, 5, 25, 5, 25, 21, 5, 21]]


@pytest.fixture
def warnings_of(caplog, request):
    logger = MMLogger.get_instance(request.node.name)
    logger.addHandler(caplog.handler)
    yield lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    logger.removeHandler(caplog.handler)


def evaluate(root, truth_kind='CheckedCocoDataset', metric=('bbox',), scale=1.0, classes=CLASSES, **more):
    """Perfect predictions, made from the dataset's own labels: (scores, dataset, metric)."""
    data = DATASETS.build(dataset(root, truth_kind, 'segm' in metric, test_mode=True, metainfo=dict(classes=classes)))
    scorer = METRICS.build(dict(dict(type='CheckedCocoMetric', ann_file=f'{root}/a.json', metric=list(metric)), **more))
    scorer.dataset_meta = data.metainfo
    for index in range(len(data)):
        info = data.get_data_info(index)
        boxes = np.array([item['bbox'] for item in info['instances']], np.float32).reshape(-1, 4)
        instances = dict(bboxes=torch.from_numpy(boxes), scores=torch.ones(len(boxes)),
                         labels=torch.tensor([item['bbox_label'] for item in info['instances']], dtype=torch.long))
        if 'segm' in metric:
            masks = np.zeros((len(boxes), info['height'], info['width']), bool)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
                mask[y1:y2, x1:x2] = True
            instances['masks'] = torch.from_numpy(masks)
        scorer.process({}, [dict(img_id=info['img_id'], ori_shape=(info['height'], info['width']),
                                 pred_instances=instances)])
    return scorer.evaluate(len(data)), data, scorer


def labels(data) -> list[list[int]]:
    return [[item['bbox_label'] for item in data.get_data_info(index)['instances']] for index in range(len(data))]


# ---- classes ----
@pytest.mark.parametrize('order', [(2, 0, 1), (2, 1, 0), (1, 0, 2)])
def test_label_i_is_class_i_whatever_the_order(order, tmp_path):
    """By name, with ids that are in no order either."""
    content = coco(6)
    ids = {1: 70, 2: 9, 3: 31}
    for item in content['annotations']:
        item['category_id'] = ids[item['category_id']]
    content['categories'] = [dict(id=ids[1 + index], name=CLASSES[index]) for index in order]
    write(tmp_path, content)
    scores, data, scorer = evaluate(tmp_path, classwise=True, outfile_prefix=f'{tmp_path}/out')
    assert labels(data) == [[0], [1], [2], [0], [1], [2]]
    assert scores['coco/bbox_mAP'] == 1.0
    assert all(scores[f'coco/{name}_precision'] == 1.0 for name in CLASSES)
    written = json.loads((tmp_path / 'out.bbox.json').read_text())
    assert [item['category_id'] for item in written] == [70, 9, 31, 70, 9, 31]


def test_the_table_by_class_names_the_right_class(tmp_path):
    content = coco(6)
    content['categories'] = [dict(id=number, name=name) for number, name in ((3, 'cat'), (2, 'dog'), (1, 'emu'))]
    for item in content['annotations']:
        item['category_id'] = 4 - item['category_id']
    write(tmp_path, content)
    data = DATASETS.build(dataset(tmp_path, test_mode=True))
    scorer = METRICS.build(dict(type='CheckedCocoMetric', ann_file=f'{tmp_path}/a.json', classwise=True))
    scorer.dataset_meta = data.metainfo
    for index in range(6):  # cats are found, dogs and emus are not
        info = data.get_data_info(index)
        box = torch.tensor([info['instances'][0]['bbox']], dtype=torch.float32)
        scorer.process({}, [dict(img_id=info['img_id'], ori_shape=(HEIGHT, WIDTH), pred_instances=dict(
            bboxes=box, scores=torch.ones(1), labels=torch.tensor([0])))])
    scores = scorer.evaluate(6)
    assert [scores[f'coco/{name}_precision'] for name in ('dog', 'emu')] == [0.0, 0.0] and scores[
        'coco/cat_precision'] > 0.3


def test_fewer_classes_than_the_file_and_text_ids(tmp_path):
    content = coco(6, categories=[dict(id=number, name=name) for number, name in ((1, 'cat'), (2, 'dog'), (3, 'emu'))])
    for image in content['images']:
        image['id'] = f'img_{image["id"]}'
    for item in content['annotations']:
        item['image_id'] = f'img_{item["image_id"]}'
    write(tmp_path, content)
    scores, data, _ = evaluate(tmp_path, classes=('emu', 'cat'))
    assert labels(data) == [[1], [], [0], [1], [], [0]] and scores['coco/bbox_mAP'] == 1.0
    assert data.get_data_info(0)['img_id'] == 'img_1'


@pytest.mark.parametrize(('name', 'said'), [
    ('Dog', "'dog' is 'Dog' in the file"), (' dog', "'dog' is ' dog' in the file"), ('cow', r"no category \['dog'\]")])
def test_a_class_under_another_name(name, said, tmp_path):
    write(tmp_path, coco(classes=('cat', name, 'emu')))
    for test_mode in (False, True):
        with pytest.raises(DataError, match=rf'a\.json.*{said}'):
            DATASETS.build(dataset(tmp_path, test_mode=test_mode))
    scorer = METRICS.build(dict(type='CheckedCocoMetric', ann_file=f'{tmp_path}/a.json'))
    with pytest.raises(DataError, match=said):
        scorer.dataset_meta = dict(classes=CLASSES)


def test_one_text_is_no_sequence_of_classes(tmp_path):
    write(tmp_path, coco())
    with pytest.raises(DataError, match=r"classes is the text 'cat'.*\('name',\)"):
        DATASETS.build(dataset(tmp_path, metainfo=dict(classes='cat')))


def test_a_super_category_of_the_same_name(tmp_path):
    content = coco()
    content['categories'].insert(0, dict(id=0, name='cat', supercategory='none'))
    write(tmp_path, content)
    scores, data, _ = evaluate(tmp_path)
    assert labels(data) == [[0], [1], [2], [0]] and scores['coco/bbox_mAP'] == 1.0
    content['annotations'][3]['category_id'] = 0
    write(tmp_path, content)
    with pytest.raises(DataError, match=r"name 'cat', ids \[0, 1\]"):
        DATASETS.build(dataset(tmp_path))


# ---- mended ----
def without(*keys):
    def spoil(content):
        for item in content['annotations']:
            for key in keys:
                del item[key]
    return spoil


def ids_as(convert, key, section='annotations'):
    def spoil(content):
        for item in content[section]:
            item[key] = convert(item[key])
    return spoil


def set_all(**values):
    def spoil(content):
        for item in content['annotations']:
            item.update(values)
    return spoil


MENDED = {
    'no iscrowd': (without('iscrowd'), 'coco-iscrowd'),
    'iscrowd as text': (set_all(iscrowd='0'), 'coco-iscrowd-text'),
    'iscrowd null': (set_all(iscrowd=None), 'coco-iscrowd'),
    'no area': (without('area'), 'coco-area'),
    'area as text': (ids_as(str, 'area'), 'coco-area'),
    'no id': (without('id'), 'coco-annotation-ids'),
    'id 0': (ids_as(lambda value: value - 1, 'id'), 'coco-unscored-ids'),
    'ids as words': (ids_as(lambda value: f'a{value}', 'id'), 'coco-unscored-ids'),
    'one id for all': (set_all(id=7), 'coco-annotation-ids'),
    'categories as text': (ids_as(str, 'category_id'), 'coco-id-types'),
    'category ids as text': (ids_as(str, 'id', 'categories'), 'coco-id-types'),
    'images as text': (ids_as(str, 'image_id'), 'coco-id-types'),
    'image ids as text': (ids_as(str, 'id', 'images'), 'coco-id-types'),
    'sizes as text': (ids_as(str, 'width', 'images'), 'coco-size-type'),
    'flat polygons': (ids_as(lambda value: value[0], 'segmentation'), 'coco-flat-polygon'),
    'two points beside a polygon': (ids_as(lambda value: [[1, 1, 9, 9], *value], 'segmentation'),
                                    'coco-thin-first-polygon'),
    'two points after a polygon': (ids_as(lambda value: [*value, [1, 1, 9, 9]], 'segmentation'), 'coco-thin-polygons'),
    'images listed twice': (lambda content: content['images'].append(dict(content['images'][0])),
                            'coco-repeated-images'),
    'annotations listed twice': (lambda content: content['annotations'].append(dict(content['annotations'][0])),
                                 'coco-repeated-annotations'),
}


WORKS = {
    'iscrowd false': set_all(iscrowd=False),
    'ids as fractions': ids_as(float, 'id'),
    'negative ids': ids_as(lambda value: -value, 'id'),
    'categories as fractions': ids_as(float, 'category_id'),
    'images as fractions': ids_as(float, 'image_id'),
    'sizes as fractions': ids_as(float, 'width', 'images'),
}


@pytest.mark.parametrize('kind', WORKS)
def test_what_mmdetection_reads_needs_no_word(kind, tmp_path, warnings_of):
    content = coco(4)
    WORKS[kind](content)
    write(tmp_path, content)
    for checked in ('Checked', ''):
        scores, data, _ = evaluate(tmp_path, f'{checked}CocoDataset', type=f'{checked}CocoMetric')
        assert labels(data) == [[0], [1], [2], [0]] and scores['coco/bbox_mAP'] == 1.0
    assert not CocoFile(f'{tmp_path}/a.json').findings()


@pytest.mark.parametrize('kind', MENDED)
def test_mended_for_dataset_and_metric_alike(kind, tmp_path, warnings_of):
    spoil, rule = MENDED[kind]
    content = coco(4)
    spoil(content)
    write(tmp_path, content)
    scores, data, scorer = evaluate(tmp_path, metric=('bbox', 'segm'))
    assert labels(data) == [[0], [1], [2], [0]]
    assert scores['coco/bbox_mAP'] == scores['coco/segm_mAP'] == 1.0
    truth = scorer._coco_api.dataset['annotations']
    assert [item['iscrowd'] for item in truth] == [0] * 4 and [item['area'] for item in truth] == [320.0] * 4
    assert sorted(item['id'] for item in truth)[0] >= 1 and len({item['id'] for item in truth}) == 4
    assert sum(f'[{rule}]' in line for line in warnings_of()) == 1  # once, with the number


def test_the_area_of_masks(tmp_path):
    """Of polygons and of both kinds of RLE, against pycocotools."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order='F')
    mask[5:21, 5:30] = 1
    mask[2, 40] = mask[40, 60] = 1
    rle = mask_api.encode(mask)
    compressed = dict(size=[HEIGHT, WIDTH], counts=rle['counts'].decode())
    runs = decode_counts(compressed['counts'])
    again = mask_api.frPyObjects(dict(size=[HEIGHT, WIDTH], counts=runs), HEIGHT, WIDTH)
    assert again['counts'] == rle['counts']
    content = coco(4)
    shapes = (SQUARE, compressed, dict(size=[HEIGHT, WIDTH], counts=runs), [])
    for item, segmentation in zip(content['annotations'], shapes, strict=True):
        item['segmentation'] = segmentation
        del item['area']
    areas = [item['area'] for item in CocoFile(str(write(tmp_path, content))).annotations]
    assert areas == [320.0, 402.0, 402.0, 320.0]


def test_a_byte_order_mark(tmp_path):
    write(tmp_path, coco())
    (tmp_path / 'a.json').write_text(json.dumps(coco()), encoding='utf-8-sig')
    assert evaluate(tmp_path)[0]['coco/bbox_mAP'] == 1.0


def test_backslashes(tmp_path):
    content = coco()
    for image in content['images']:
        image['file_name'] = f'sub\\{image["file_name"]}'
    write(tmp_path, content)
    data = DATASETS.build(dataset(tmp_path))
    assert data.get_data_info(0)['img_path'] == f'{tmp_path}/img/sub/1.png'


# ---- refused, the whole file ----
POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n'
REFUSED = {
    'pointer': (POINTER, 'is a Git LFS pointer'),
    'cut': (json.dumps(coco())[:-200], 'cut off'),
    'cut in a text': (json.dumps(coco())[:40], 'cut off'),
    'cut after a list': (json.dumps(coco())[:-1], 'cut off'),
    'page': ('<!DOCTYPE html><p>404', 'web page'),
    'empty': (' \n', 'is empty'),
    'gzip': (b'\x1f\x8b\x08\x00rest', 'gzip'),
    'zip': (b'PK\x03\x04rest', 'ZIP'),
    'utf-16': (json.dumps(coco()).encode('utf-16'), 'UTF-16'),
    'latin': (json.dumps(coco()).replace('cat', '\xe9t\xe9').encode('latin-1'), 'UTF-8'),
    'two files': (json.dumps(coco()) * 2, 'more text after the end'),
    'more text': (json.dumps(coco()) + ' x', 'more text after the end'),
    'a last comma': (json.dumps(coco())[:-1] + ',}', 'a comma before'),
    'a last comma in a list': (json.dumps(coco(images=[])).replace('[]', '[{}, ]'), 'a comma before'),
    'comma': (json.dumps(coco()).replace('"categories"', ',"categories"'), 'is no JSON'),
    'list': ([coco()], 'is a list, not an object'),
    'number': ('7', 'is a single value'),
    'no categories': ({key: value for key, value in coco().items() if key != 'categories'}, 'no categories; its keys'),
    'no images': ({key: value for key, value in coco().items() if key != 'images'}, 'no images; its keys'),
    'dict of images': (coco(images={'1': {}}), 'images holds dict'),
    'null annotations': (coco(annotations=None), 'annotations holds NoneType'),
    'annotations of lists': (coco(annotations=[[1, 2]]), 'annotations holds list'),
    'empty images': (coco(images=[]), 'images is an empty list'),
    'empty categories': (coco(categories=[]), 'categories is an empty list'),
}
for side in ('width', 'height'):
    for value in (-1, 0, None, 'wide', 40.5, float('nan'), True, [3]):
        REFUSED[f'{side} {value}'] = (coco(images=[{**coco(1)['images'][0], side: value}]), f'1.png: {side} ')
for key, value in (('id', None), ('id', [1]), ('id', 1.5), ('file_name', None), ('file_name', 7), ('file_name', '')):
    REFUSED[f'image with {key} {value}'] = (coco(images=[{**coco(1)['images'][0], key: value}]), f'without.*{key}')
REFUSED['image ids twice'] = (coco(images=[*coco()['images'], {**coco()['images'][1], 'file_name': '9.png'}]),
                              'id 2, 2.png and 9.png')
REFUSED['category ids twice'] = (coco(categories=[*coco()['categories'], dict(id=2, name='gnu')]), "'dog' and 'gnu'")
REFUSED['category without name'] = (coco(categories=[*coco()['categories'], dict(id=4)]), 'without id or name')


@pytest.mark.parametrize('kind', REFUSED)
def test_refused_with_the_files_name(kind, tmp_path):
    content, said = REFUSED[kind]
    write(tmp_path, content, pictures=False)
    for test_mode in (False, True):
        with pytest.raises(DataError, match=f'a.json.*({said})') as error:
            DATASETS.build(dataset(tmp_path, test_mode=test_mode))
        assert str(error.value).count('\n') < 3
    scorer = dict(type='CheckedCocoMetric', ann_file=f'{tmp_path}/a.json')
    with pytest.raises(DataError, match=f'a.json.*({said})'):
        METRICS.build(scorer).dataset_meta = dict(classes=CLASSES)


# ---- bad annotations ----
HALF = dict(size=[HEIGHT // 2, WIDTH // 2], counts=[0, HEIGHT // 2 * (WIDTH // 2)])
PACKED = mask_api.encode(np.ones((HEIGHT // 2, WIDTH // 2), np.uint8, order='F'))['counts'].decode()
UNUSABLE = {
    'no mask': (dict(segmentation=[]), 'without a mask'),
    'no mask, null': (dict(segmentation=None), 'without a mask'),
    'two points': (dict(segmentation=[[1, 1, 9, 9]]), 'without a mask'),
    'odd': (dict(segmentation=[[1, 1, 9, 1, 9, 9, 4]]), 'cannot be read'),
    'odd beside a good one': (dict(segmentation=[*SQUARE, [1, 1, 9, 1, 9, 9, 4]]), 'cannot be read'),
    'points as pairs': (dict(segmentation=[[[1, 1], [9, 1], [9, 9]]]), 'cannot be read'),
    'NaN': (dict(segmentation=[[1, 1, 9, 1, 9, float('nan')]]), 'cannot be read'),
    'words': (dict(segmentation=[['1', '1', '9', '1', '9', '9']]), 'cannot be read'),
    'text': (dict(segmentation='mask.png'), 'cannot be read'),
    'half': (dict(segmentation=HALF), "another size than the image's"),
    'half, packed': (dict(segmentation=dict(HALF, counts=PACKED)), "another size than the image's"),
    'turned': (dict(segmentation=dict(size=[WIDTH, HEIGHT], counts=[0, WIDTH * HEIGHT])), 'another size'),
    'short': (dict(segmentation=dict(size=[HEIGHT, WIDTH], counts=[5, 9])), 'cannot be read'),
    'short, packed': (dict(segmentation=dict(size=[HEIGHT, WIDTH], counts=PACKED)), 'cannot be read'),
    'no counts': (dict(segmentation=dict(size=[HEIGHT, WIDTH])), 'cannot be read'),
    'garbled': (dict(segmentation=dict(size=[HEIGHT, WIDTH], counts='\u00e9')), 'cannot be read'),
    'box with NaN': (dict(bbox=[4, float('nan'), 9, 9]), 'four finite numbers'),
    'box of words': (dict(bbox=['4', '4', '9', '9']), 'four finite numbers'),
    'box of three': (dict(bbox=[4, 4, 9]), 'four finite numbers'),
    'box of null': (dict(bbox=None), 'four finite numbers'),
}


@pytest.mark.parametrize('kind', UNUSABLE)
def test_what_cannot_be_used(kind, tmp_path, warnings_of):
    change, said = UNUSABLE[kind]
    content = coco(7)
    content['annotations'][3].update(change)
    write(tmp_path, content)
    for test_mode in (False, True):
        with pytest.raises(DataError, match=f'a.json: annotation 4 of 4.png, .*{said}.*on_bad_annotation'):
            DATASETS.build(dataset(tmp_path, masks=True, test_mode=test_mode))
    scorer = dict(type='CheckedCocoMetric', ann_file=f'{tmp_path}/a.json', metric=['bbox', 'segm'])
    with pytest.raises(DataError, match=said):
        METRICS.build(scorer).dataset_meta = dict(classes=CLASSES)
    data = DATASETS.build(dataset(tmp_path, masks=True, on_bad_annotation='skip'))
    assert labels(data) == [[0], [1], [2], [], [1], [2], [0]]
    metric = METRICS.build(dict(scorer, on_bad_annotation='skip'))
    metric.dataset_meta = dict(classes=CLASSES)
    assert len(metric._coco_api.anns) == 6
    assert sum('1 annotations left out' in line and said in line for line in warnings_of()) == 2
    data[0]  # the pipeline runs


@pytest.mark.parametrize('kind', [kind for kind in UNUSABLE if 'segmentation' in UNUSABLE[kind][0]])
def test_masks_that_nobody_wants_are_not_looked_at(kind, tmp_path):
    content = coco(4)
    content['annotations'][3].update(UNUSABLE[kind][0])
    write(tmp_path, content)
    assert labels(DATASETS.build(dataset(tmp_path, masks=False))) == [[0], [1], [2], [0]]
    assert evaluate(tmp_path)[0]['coco/bbox_mAP'] == 1.0


def test_annotations_of_unknown_images(tmp_path, warnings_of):
    write(tmp_path, coco(annotations=[*coco()['annotations'], annotation(9, 77, 1, [1, 1, 9, 9])]))
    with pytest.raises(DataError, match='annotation 9 of image 77, .*of images that the file does not list'):
        DATASETS.build(dataset(tmp_path))
    assert len(DATASETS.build(dataset(tmp_path, on_bad_annotation='skip'))) == 4
    assert any('1 annotations left out, of images' in line for line in warnings_of())


def test_small_and_outside_objects_are_scored_as_coco_does(tmp_path):
    """On purpose in an evaluation: official figures count them."""
    content = coco()
    content['annotations'] += [annotation(8, 1, 1, [2, 2, 0.5, 9]), annotation(9, 1, 1, [90, 2, 9, 9])]
    write(tmp_path, content)
    with pytest.raises(DataError, match='without area'):
        DATASETS.build(dataset(tmp_path))
    scores, data, scorer = evaluate(tmp_path)
    assert len(scorer._coco_api.anns) == 6 and labels(data)[0] == [0] and scores['coco/bbox_mAP'] < 1


# ---- what is left ----
def spoiled(**change) -> dict:
    content = coco(4)
    for item in content['annotations']:
        item.update(change)
    return content


EMPTY = {
    'zero area': (spoiled(area=0), '4 without area'),
    'fractions': (spoiled(bbox=[0.1, 0.2, 0.3, 0.4]), '4 without area'),
    'outside': (spoiled(bbox=[100, 100, 20, 20]), '4 outside the image'),
    'other categories': (spoiled(category_id=8), '4 of categories that the file does not define'),
    'other images': (spoiled(image_id=80), '4 of images that the file does not list'),
    'nothing': (coco(annotations=[]), '0 annotations'),
}


@pytest.mark.parametrize('wrap', [
    lambda data: data, lambda data: dict(type='RepeatDataset', times=2, dataset=data),
    lambda data: dict(type='ConcatDataset', datasets=[data, data]),
    lambda data: dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=data),
    lambda data: dict(type='MultiImageMixDataset', dataset=data, pipeline=[])],
    ids=['plain', 'repeat', 'concat', 'balanced', 'mixed'])
@pytest.mark.parametrize('kind', EMPTY)
def test_nothing_left_says_why(kind, wrap, tmp_path):
    content, said = EMPTY[kind]
    write(tmp_path, content)
    data = dataset(tmp_path, on_bad_annotation='skip', filter_cfg=dict(filter_empty_gt=True))
    with pytest.raises(DataError, match=rf'a\.json has no image left: 4 images, 4 without objects.*({said})'):
        len(DATASETS.build(wrap(data)))


def test_a_class_is_not_lost(tmp_path):
    content = coco(6)
    for item in content['annotations']:
        if item['category_id'] == 2:
            item['bbox'] = [5, 5, 0, 0]
    write(tmp_path, content)
    with pytest.raises(DataError, match=r"no good annotation is left of the classes \['dog'\]"):
        DATASETS.build(dataset(tmp_path, on_bad_annotation='skip'))


def test_backgrounds_beside_objects(tmp_path):
    """A set of images without objects is none that lost them."""
    write(tmp_path / 'a', coco())
    write(tmp_path / 'b', coco(annotations=[]))
    data = DATASETS.build(dict(type='ConcatDataset', datasets=[dataset(tmp_path / 'a'), dataset(tmp_path / 'b')]))
    assert len(data) == 8


def test_a_good_file_is_mmdetections(tmp_path):
    write(tmp_path, coco(6))
    checked, plain = (DATASETS.build(dataset(tmp_path, kind, masks=True))
                      for kind in ('CheckedCocoDataset', 'CocoDataset'))
    for index in range(6):
        assert checked.get_data_info(index) == plain.get_data_info(index)
    assert evaluate(tmp_path)[0] == evaluate(tmp_path, type='CocoMetric')[0]
