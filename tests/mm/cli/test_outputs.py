"""What a test writes for an image keeps the image's folders, for both tasks in the same place."""
import os
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import HOOKS, METRICS, VISUALIZERS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

import apt_dense.mm.seg  # noqa: F401
from apt_dense.mm.cli import launch, outputs
from apt_dense.mm.data.output_names import LABEL_MAPS, common_folder, name_below
from apt_dense.mm.errors import DataError

NAMES = ('a/1.jpg', 'b/1.jpg', '1.jpg', 'a/deep/1.jpg')


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """A dataset's root: images of one name in several folders, each of another grey level."""
    monkeypatch.chdir(tmp_path)
    for level, name in enumerate(NAMES):
        (tmp_path / 'data/images/val' / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(tmp_path / 'data/images/val' / name), np.full((8, 12, 3), 60 * level, np.uint8))
    return tmp_path / 'data'


def config(scope: str, **settings) -> Config:
    keys = dict(img='images/val/') if scope == 'mmdet' else dict(img_path='images/val', seg_map_path='labels/val')
    return Config(dict(default_scope=scope, test_dataloader=dict(dataset=dict(
        type='SomeDataset', data_root='data/', data_prefix=keys)), **settings))


def files(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob('*') if path.is_file())


@pytest.mark.parametrize(('dataset', 'folder'), [
    (dict(data_root='data/', data_prefix=dict(img='val/')), 'data/val'),
    (dict(data_root='data', data_prefix=dict(img_path='val', seg_map_path='labels')), 'data/val'),
    (dict(data_root='data'), 'data'), (dict(data_prefix=dict(img='/x/val')), '/x/val'), ({}, None), (None, None),
    (dict(type='RepeatDataset', dataset=dict(data_root='data', data_prefix=dict(img='val'))), 'data/val'),
    (dict(type='ConcatDataset', datasets=[dict(data_root='data', data_prefix=dict(img=name)) for name in ('a', 'b')]),
     'data'),
    ([dict(data_root='/x/y', data_prefix=dict(img_path='a')), dict(data_root='/x/z')], '/x'),
    (dict(data_root='data', data_prefix=dict(img='s3://bucket/val')), 's3:/bucket/val'),
    ([dict(data_root='data'), dict(data_root='s3://bucket')], None)])
def test_the_folder_that_images_lie_below(dataset, folder):
    found = common_folder(dataset and Config(dict(dataset=dataset)).dataset)
    assert found == (folder if folder is None or folder.startswith('s3') else os.path.abspath(folder))


@pytest.mark.parametrize(('path', 'folder', 'name'), [
    ('data/val/a/1.jpg', 'data/val', 'a/1.jpg'), ('/x/val/1.jpg', '/x/val/', '1.jpg'),
    ('data/val/../val/1.jpg', 'data/val', '1.jpg'), ('/y/val/1.jpg', '/x/val', 'y/val/1.jpg'),
    ('/x/other/1.jpg', '/x/val', 'x/other/1.jpg'), ('/x/val2/..1.jpg', '/x/val2', '..1.jpg'),
    ('s3://bucket/val/a/1.jpg', 's3:/bucket/val', 'a/1.jpg')])
def test_names_below_a_folder(path, folder, name):
    """None leads out of the directory that it is joined to."""
    assert name_below(path, folder) == name


def test_label_maps_have_a_folder_of_their_own():
    dataset = config('mmseg').test_dataloader.dataset
    assert common_folder(dataset, LABEL_MAPS) == os.path.abspath('data/labels/val')
    assert common_folder(dict(dataset, data_prefix=dict(img_path='val')), LABEL_MAPS) is None


def sample_of(scope: str, path: str):
    if scope == 'mmseg':
        return SegDataSample(metainfo=dict(img_path=path), pred_sem_seg=PixelData(data=torch.ones(1, 8, 12).long()))
    instances = InstanceData(bboxes=torch.tensor([[1., 1., 9., 7.]]), labels=torch.tensor([1]), scores=torch.ones(1))
    return DetDataSample(metainfo=dict(img_path=path), pred_instances=instances)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_pictures_of_every_image(photos, tmp_path, scope):
    cfg = config(scope, work_dir='work')
    outputs.set_visualization(cfg, show=False, show_dir='drawn', wait_time=0)
    with DefaultScope.overwrite_default_scope(scope):
        visualizer = VISUALIZERS.build(dict(cfg.visualizer, name=f'{scope}_{tmp_path}', save_dir=str(tmp_path / 'vis')))
        visualizer.dataset_meta = dict(classes=('x', 'y'), palette=[(0, 0, 0), (255, 0, 0)])
        hook = HOOKS.build(cfg.default_hooks.visualization)  # takes the newest visualiser
    for index, name in enumerate(NAMES):
        hook.after_test_iter(SimpleNamespace(iter=0), index, {}, [sample_of(scope, f'data/images/val/{name}')])
    assert files(tmp_path / 'drawn') == sorted(NAMES) and not files(tmp_path / 'vis')
    levels = {name: cv2.imread(str(tmp_path / 'drawn' / name))[-1, -1, 0] for name in NAMES}
    assert len(set(levels.values())) == len(NAMES)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_pictures_are_loaded_as_for_the_model(tmp_path, monkeypatch, scope):
    """12 bits in 16, which the pipeline is told of: with all 16 they would be nearly black."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'deep').mkdir()
    cv2.imwrite('deep/a.png', np.full((8, 12), 4095, np.uint16))
    cfg = config(scope, work_dir='work')
    cfg.test_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile', bits=12)]
    outputs.set_visualization(cfg, show=False, show_dir='drawn', wait_time=0)
    with DefaultScope.overwrite_default_scope(scope):
        visualizer = VISUALIZERS.build(dict(cfg.visualizer, name=f'deep_{scope}_{tmp_path}'))
        visualizer.dataset_meta = dict(classes=('x', 'y'), palette=[(0, 0, 0), (255, 255, 255)])
        hook = HOOKS.build(cfg.default_hooks.visualization)
    hook.after_test_iter(SimpleNamespace(iter=0), 0, {}, [sample_of(scope, 'deep/a.png')])
    assert cv2.imread(str(next((tmp_path / 'drawn').rglob('a.png')))).max() > 200


def test_settings_of_the_configs_own_hook_are_kept():
    cfg = config('mmdet', default_hooks=dict(visualization=dict(
        type='DetVisualizationHook', score_thr=0.7)))
    outputs.set_visualization(cfg, show=True, show_dir='drawn', wait_time=0.5)
    hook = cfg.default_hooks.visualization
    assert hook.pred_score_thr == 0.7
    assert (hook.show, hook.wait_time) == (True, 0.5)
    cfg = config('mmseg')
    outputs.set_visualization(cfg, show=True, show_dir='drawn', wait_time=0.5)
    assert cfg.default_hooks.visualization.show and 'pred_score_thr' not in cfg.default_hooks.visualization


def prediction(path: str, value: int, **more) -> dict:
    return dict(img_path=path, pred_sem_seg=dict(data=torch.full((1, 8, 12), value)), **more)


@pytest.mark.parametrize('by_config', [False, True])
def test_label_maps_of_every_image(photos, tmp_path, by_config):
    evaluator = dict(type='IoUMetric', format_only=True, **(dict(output_dir='maps') if by_config else {}))
    cfg = config('mmseg', test_evaluator=evaluator)
    if not by_config:
        outputs.set_output(cfg, 'maps')
    outputs.keep_folders(cfg)
    with DefaultScope.overwrite_default_scope('mmseg'):
        metric = METRICS.build(cfg.test_evaluator)
    metric.dataset_meta = dict(classes=tuple('abcde'))
    for index, name in enumerate(NAMES):
        metric.process({}, [prediction(f'data/images/val/{name}', index, reduce_zero_label=True)])
    assert files(tmp_path / 'maps') == sorted(name.replace('.jpg', '.png') for name in NAMES)
    for index, name in enumerate(NAMES):
        labels = cv2.imread(str(tmp_path / 'maps' / name.replace('.jpg', '.png')), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8 and (labels == index + 1).all()
    metric.process({}, [prediction('data/images/val/a/1.jpg', 4)])  # a sampler fills its last batch with the first
    with pytest.raises(DataError, match=r'val/a/1\.jpg and data/images/val/a/1\.bmp would both have the label map a/1'):
        metric.process({}, [prediction('data/images/val/a/1.bmp', 0)])
    assert metric.output_dir == 'maps'


def test_the_metrics_are_mmsegmentations(tmp_path):
    """With and without label maps written, on all samples of a batch."""
    truth = dict(gt_sem_seg=dict(data=torch.ones(1, 8, 12).long()))
    samples = [prediction(f'{name}.jpg', value, **truth) for name, value in (('x/1', 1), ('y/1', 0))]
    values = []
    for kind, output_dir in (('IoUMetric', None), ('FolderIoUMetric', None), ('FolderIoUMetric', str(tmp_path))):
        with DefaultScope.overwrite_default_scope('mmseg'):
            metric = METRICS.build(dict(type=kind, output_dir=output_dir))
        metric.dataset_meta = dict(classes=('a', 'b'))
        metric.process({}, samples)
        values.append(metric.evaluate(size=2))
    assert values[0] == values[1] == values[2] and values[0]['aAcc'] == 50.0
    assert files(tmp_path) == ['x/1.png', 'y/1.png']


@pytest.mark.parametrize('folder', ['data/images/val', 'data/labels/val/', './data/../data/labels/val'])
def test_the_data_is_not_overwritten(photos, folder):
    cfg = config('mmseg', test_evaluator=dict(type='IoUMetric'))
    with pytest.raises(launch.LaunchError, match=rf'--out {folder} holds the test data, which would be overwritten'):
        outputs.set_output(cfg, folder)
    with pytest.raises(launch.LaunchError, match=r'--show-dir .* holds the test data'):
        outputs.set_visualization(cfg, False, folder, 0)
