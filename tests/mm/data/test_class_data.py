"""Pictures in folders of classes, torchvision's transforms in a pipeline, and what is counted of the logits."""
import pickle

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, METRICS, TRANSFORMS
from mmengine.structures import BaseDataElement
from PIL import Image

from apt_dense.mm.errors import DataError

cls = pytest.importorskip('apt_dense.mm.cls', exc_type=ImportError)

LOADING = [dict(type='LoadImageFromFile', imdecode_backend='pillow'), dict(type='PackClassInputs')]


def write(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (40, 56, 3), np.uint8)).save(path)


def dataset(root, pipeline=LOADING, **settings):
    return DATASETS.build(dict(type='ClassFolderDataset', data_root=str(root), data_prefix=dict(img_path='train'),
                               pipeline=pipeline, **settings))


@pytest.fixture
def root(tmp_path):
    write(tmp_path / 'train', 'cat/1.png', 'cat/more/2.png', 'ant/1.png', 'bee/9.png')
    return tmp_path


def test_classes_are_the_folders_in_order(root):
    data = dataset(root, num_classes=3)
    assert data.metainfo['classes'] == ('ant', 'bee', 'cat')
    assert [(data.get_data_info(index)['gt_label'], data.get_data_info(index)['img_path'].split('train/')[1])
            for index in range(len(data))] == [(0, 'ant/1.png'), (1, 'bee/9.png'), (2, 'cat/1.png'),
                                               (2, 'cat/more/2.png')]
    sample = data[3]
    with Image.open(root / 'train/cat/more/2.png') as image:
        assert np.array_equal(sample['inputs'].permute(1, 2, 0).numpy()[..., ::-1], np.asarray(image))
    assert sample['data_samples'].gt_label == 2
    assert dataset(root, metainfo=dict(classes=['x', 'y', 'z'])).metainfo['classes'] == ['x', 'y', 'z']


@pytest.mark.parametrize(('settings', 'message'), [
    (dict(num_classes=4), 'train has 3 folders of classes, from ant to cat, and num_classes is 4'),
    (dict(metainfo=dict(classes=['x'])), r'metainfo.classes has 1 names, and .*train 3 folders'),
    (dict(data_prefix=dict(img_path='val')), 'val is not a folder: wanted one with a folder for each class')])
def test_folders_that_do_not_fit(root, settings, message):
    with pytest.raises(DataError, match=message):
        DATASETS.build(dict(dict(type='ClassFolderDataset', data_root=str(root), data_prefix=dict(img_path='train'),
                                 pipeline=[]), **settings))


def test_a_class_without_pictures(root):
    (root / 'train/dog').mkdir()
    with pytest.raises(DataError, match='(?s)train: .*dog'):
        dataset(root)


def test_pictures_without_folders(root):
    write(root / 'flat', 'ILSVRC2012_val_00000001.png', 'ILSVRC2012_val_00000002.png')
    with pytest.raises(DataError, match='flat holds 2 pictures and no folders.*sorts them'):
        DATASETS.build(dict(type='ClassFolderDataset', data_root=str(root), data_prefix=dict(img_path='flat'),
                            pipeline=[]))


@pytest.mark.parametrize('arguments', [
    dict(type='Resize', size=24, interpolation='bicubic'), dict(type='CenterCrop', size=[20, 30]),
    dict(type='RandomResizedCrop', size=16, interpolation='bilinear'),
    dict(type='RandAugment', num_ops=2, magnitude=9, interpolation='bicubic')], ids=lambda one: one['type'])
def test_a_transform_is_torchvisions_own(root, arguments):
    """On PIL images, in RGB, with torch's random numbers."""
    v2 = pytest.importorskip('torchvision.transforms.v2')
    torch.manual_seed(3)
    name = arguments['type']
    data = dataset(root, [LOADING[0], dict(arguments, type=f'torchvision/{name}'), LOADING[1]])
    own = data[2]['inputs'].flip(0).permute(1, 2, 0).numpy()
    torch.manual_seed(3)
    options = {key: v2.InterpolationMode(value) if key == 'interpolation' else value
               for key, value in arguments.items() if key != 'type'}
    with Image.open(root / 'train/cat/1.png') as image:
        assert np.array_equal(own, np.asarray(getattr(v2, name)(**options)(image.convert('RGB'))))


def test_erased_to_the_given_colour_in_rgb():
    erase = TRANSFORMS.build(dict(type='torchvision/RandomErasing', p=1, value=[10, 20, 30]))
    image = erase(dict(img=np.full((32, 32, 3), 255, np.uint8)))['img']
    assert {tuple(colour) for colour in image.reshape(-1, 3).tolist()} == {(30, 20, 10), (255, 255, 255)}


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(type='torchvision/Resize', size=24, interpolation='cubic'), "interpolation='cubic': choose one of"),
    (dict(type='torchvision/Resize', sizes=24), 'torchvision/Resize with .*sizes'),
    (dict(type='torchvision/RandomErasing', p=2), 'torchvision/RandomErasing with')])
def test_arguments_that_torchvision_does_not_take(arguments, message):
    with pytest.raises(DataError, match=message):
        TRANSFORMS.build(arguments)


def test_an_unreadable_picture_is_named(root):
    (root / 'train/ant/2.jpg').write_bytes(b'no picture')
    with pytest.raises(ValueError, match='ant/2.jpg is no picture that can be read .*: repair or remove it'):
        dataset(root)[1]


def samples(*labels):
    return dict(data_samples=[BaseDataElement(gt_label=label, metainfo=dict(img_path=f'{index}.png'))
                              for index, label in enumerate(labels)])


def test_accuracy():
    metric = METRICS.build(dict(type='TopKAccuracy', topk=(1, 2, 9)))
    logits = torch.tensor([[3., 2., 1.], [3., 2., 1.], [3., 2., 1.], [1., 1., 1.]])
    metric.process(samples(0, 1, 2, 0), logits)
    assert metric.evaluate(4) == {'accuracy/top1': 25.0, 'accuracy/top2': 50.0, 'accuracy/top9': 100.0}
    with pytest.raises(DataError, match=r'0.png is of class 3, and the model has 3 classes'):
        metric.process(samples(3), logits[:1])
    with pytest.raises(DataError, match=r'topk=\(0,\)'):
        METRICS.build(dict(type='TopKAccuracy', topk=(0,)))


def test_logits_are_written(tmp_path):
    metric = METRICS.build(dict(type='DumpLogits', out_file_path=str(tmp_path / 'out.pkl')))
    logits = torch.randn(64, 500)
    metric.process(samples(*range(64)), logits)
    metric.evaluate(64)
    assert (tmp_path / 'out.pkl').stat().st_size < 64 * 500 * 4 * 1.1  # not the whole batch with each
    written = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert (written[3]['img_path'], written[3]['gt_label']) == ('3.png', 3)
    assert np.array_equal(np.stack([one['logits'] for one in written]), logits.numpy())
