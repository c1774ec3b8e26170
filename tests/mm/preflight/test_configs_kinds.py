"""Settings of datasets and metrics that are of another kind than is wanted: one message, whoever reads them first."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS, Registry

from apt_dense.mm.preflight.configs_kinds import check_kinds, check_root, check_settings
from apt_dense.mm.preflight.findings import PreflightError
from apt_dense.mm.preflight.run import check
from tests.mm.preflight.coco_files import coco, dataset, write

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / 'configs'


def changed(split: str, place: str, settings: dict, task: str = 'det') -> Config:
    cfg = Config.fromfile(CONFIGS / f'eva02_ti_demo_{task}.py')
    node = cfg[f'{split}_{place.partition(".")[0]}']
    for part in place.split('.')[1:]:
        node = node[part]
    node.update(settings)
    return cfg


WRONG = [
    ('dataloader.dataset', dict(data_prefix='img/'), 'data_prefix', "got the text 'img/', wanted a dict: data_prefix="),
    ('dataloader.dataset', dict(data_prefix=['img/']), 'data_prefix', "got the list ['img/'], wanted a dict"),
    ('dataloader.dataset', dict(data_prefix=dict(img=3)), 'data_prefix.img', "got the number 3, wanted a folder: 'img"),
    ('dataloader.dataset', dict(metainfo=['cat']), 'metainfo', "got the list ['cat'], wanted a dict: metainfo=dict("),
    ('dataloader.dataset', dict(metainfo='cat'), 'metainfo', "got the text 'cat', wanted a dict: metainfo=dict("),
    ('dataloader.dataset', dict(metainfo=dict(classes='cat')), 'metainfo.classes', "got the text 'cat'"),
    ('dataloader.dataset', dict(metainfo=dict(classes=3)), 'metainfo.classes', 'got the number 3, wanted a sequence'),
    ('dataloader.dataset', dict(metainfo=dict(classes={'cat'})), 'metainfo.classes', "got the set {'cat'}, wanted a"),
    ('dataloader.dataset', dict(metainfo=dict(classes=[])), 'metainfo.classes', 'got []. Name the classes'),
    ('dataloader.dataset', dict(metainfo=dict(classes=())), 'metainfo.classes', 'got (). Name the classes'),
    ('dataloader.dataset', dict(ann_file=3), 'ann_file', 'got the number 3, wanted a text'),
    ('dataloader.dataset', dict(ann_file=['a', 'b']), 'ann_file', "got the list ['a', 'b'], wanted a text"),
    ('dataloader.dataset', dict(data_root=dict(a=1)), 'data_root', "got the dict {'a': 1}, wanted a text"),
    ('dataloader.dataset', dict(pipeline='a'), 'pipeline', "got the text 'a', wanted a list of steps"),
    ('dataloader.dataset', dict(pipeline=['Resize']), 'pipeline.0', "got the text 'Resize', wanted a dict"),
    ('dataloader.dataset', dict(filter_cfg=True), 'filter_cfg', 'got the bool True, wanted a dict'),
    ('dataloader.dataset', dict(indices='10'), 'indices', "got the text '10', wanted a number"),
    ('dataloader.dataset', dict(backend_args='local'), 'backend_args', "got the text 'local', wanted a dict"),
    ('dataloader', dict(batch_size='2'), 'batch_size', "got the text '2', wanted a whole number"),
    ('dataloader', dict(num_workers=1.5), 'num_workers', 'got the number 1.5, wanted a whole number'),
    ('evaluator', dict(ann_file=['a.json']), 'ann_file', "got the list ['a.json'], wanted a text"),
]


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
@pytest.mark.parametrize(('place', 'settings', 'key', 'said'), WRONG)
def test_a_setting_of_another_kind(split, place, settings, key, said):
    if (split, place) == ('train', 'evaluator'):
        return
    cfg = changed(split, place, settings)
    finding, = check_kinds(cfg, split)
    assert finding.where == f'{split}_{place}.{key}' and said in str(finding)
    report = check(cfg, [split])  # nothing else fails on it
    assert report.findings[0].where == finding.where and report.stops
    with pytest.raises(PreflightError, match='got '):
        check_settings(cfg, split)


def test_inside_of_wrappers():
    cfg = changed('train', 'dataloader.dataset', dict(data_prefix='img/'))
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=dict(
        type='ConcatDataset', datasets=[cfg.train_dataloader.dataset]))
    finding, = check_kinds(cfg, 'train')
    assert finding.where == 'train_dataloader.dataset.dataset.datasets.0.data_prefix'


def test_what_is_wrong_with_a_split_that_is_not_needed_is_not_in_the_way():
    cfg = changed('train', 'dataloader.dataset', dict(data_prefix='img/', metainfo=['cat']))
    findings = check(cfg, ['test']).findings
    assert not any(finding.where.startswith('train') for finding in findings)


def test_what_is_read_as_it_is(tmp_path):
    (tmp_path / 'classes.txt').write_text('cat\ndog\n')
    for settings in (dict(metainfo=dict(classes=['cat'])), dict(metainfo=dict(classes=str(tmp_path / 'classes.txt'))),
                     dict(metainfo=None), dict(indices=[1, 2]), dict(data_prefix=dict(img=None)), dict(data_root=None)):
        assert list(check_kinds(changed('train', 'dataloader.dataset', settings), 'train')) == []


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_the_demos_are_of_the_right_kinds(task):
    cfg = Config.fromfile(CONFIGS / f'eva02_ti_demo_{task}.py')
    assert [*check_kinds(cfg, 'train'), *check_kinds(cfg, 'val'), *check_kinds(cfg, 'test')] == []


@pytest.mark.slow
@pytest.mark.parametrize('tool', ['train', 'test'])
def test_the_tools_say_it_in_one_message(tool, tmp_path):
    split = 'train' if tool == 'train' else 'test'
    (tmp_path / 'own.py').write_text(f"_base_ = '{CONFIGS}/eva02_ti_demo_det.py'\n{split}_dataloader = dict(\n"
                                     "    dataset=dict(data_prefix=dict(_delete_=True, img=['img/'])))\n")
    (tmp_path / 'a.pth').write_bytes(b'')
    command = [sys.executable, str(ROOT / f'tools/{tool}.py'), str(tmp_path / 'own.py'), '--work-dir', str(tmp_path)]
    run = subprocess.run(command + ([str(tmp_path / 'a.pth')] if tool == 'test' else []), capture_output=True,
                         text=True, cwd=tmp_path)
    assert run.returncode == 2 and 'Traceback' not in run.stderr
    assert f"error: {split}_dataloader.dataset.data_prefix.img: got the list ['img/']" in run.stderr


@pytest.mark.parametrize('place', ['dataset', 'metric'])
def test_an_annotation_file_that_is_a_folder(tmp_path, place):
    write(tmp_path, coco())
    settings = dataset(tmp_path, test_mode=True, **(dict(ann_file='img') if place == 'dataset' else {}))
    metric = dict(type='CheckedCocoMetric', ann_file=str(tmp_path / ('img' if place == 'metric' else 'a.json')))
    cfg = Config(dict(default_scope='mmdet', val_dataloader=dict(dataset=settings), val_evaluator=metric))
    findings = {finding.rule.name: str(finding) for finding in check(cfg, ['val']).findings}
    assert f'{tmp_path}/img is a folder, wanted a file in it' in findings['coco-file-missing']


@pytest.mark.parametrize(('changes', 'said'), [
    (dict(iscrowd=2), 'iscrowd is 2, wanted 0 or 1'), (dict(iscrowd=[0]), 'iscrowd is [0], wanted 0 or 1'),
    (dict(image_id=1.5), 'image_id is 1.5, wanted a number or text'),
    (dict(category_id={}), 'category_id is {}, wanted a number or text'),
    (dict(area='big', bbox=None), "area is 'big', wanted a number")])
def test_what_cannot_be_read_is_said(tmp_path, changes, said):
    content = coco()
    content['annotations'][0].update(changes)
    if 'area' in changes:
        content['annotations'][0].pop('segmentation', None)
    path = write(tmp_path, content)
    cfg = Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dataset(tmp_path))))
    message = next(str(finding) for finding in check(cfg, ['train']).findings
                   if finding.rule.name in ('coco-incomplete', 'coco-box-not-finite'))
    assert said in message and json.loads(path.read_text())


@pytest.mark.parametrize(('segmentation', 'said'), [
    ([], 'segmentation is []'), ([[1, 2, 3, 4]], 'segmentation is [[1, 2, 3, 4]]'), ({}, 'segmentation is {}'),
    (None, 'segmentation is missing')])
def test_a_mask_without_area_is_shown(tmp_path, segmentation, said):
    content = coco()
    content['annotations'][0]['segmentation'] = segmentation
    write(tmp_path, content)
    cfg = Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dataset(tmp_path, masks=True))))
    messages = {finding.rule.name: str(finding) for finding in check(cfg, ['train']).findings}
    assert said in messages['coco-no-mask']


def test_what_is_given_as_an_object_is_the_users_own():
    """mmengine takes functions, samplers and schedules that are made already."""
    cfg = changed('train', 'dataloader', dict(collate_fn=pseudo_collate))
    cfg.param_scheduler, cfg.log_level, cfg.default_scope = [object()], 20, 'kinds_of_this_test'
    cfg.model.backbone = [dict(type='A'), dict(type='B')]
    assert list(check_kinds(cfg, 'train')) == []
    assert [finding.where for finding in check_root(cfg)] == ['default_scope']
    Registry('model', parent=MODELS, scope='kinds_of_this_test')
    try:
        assert list(check_root(cfg)) == []
    finally:
        MODELS.children.pop('kinds_of_this_test')


@pytest.mark.parametrize(('key', 'value', 'said'), [
    ('load_from', '', "got the text '', wanted a file"),
    ('train_cfg.val_interval', 0, 'got the number 0'), ('train_cfg.max_iters', '3k', "got the text '3k'"),
    ('train_cfg.max_iters', -1, 'got the number -1'), ('default_hooks.checkpoint.interval', '1k', "got the text '1k'"),
    ('default_hooks.logger.interval', 2.5, 'got the number 2.5'),
    ('train_cfg.val_interval', True, 'got the bool True')])
def test_counts_of_a_training(key, value, said):
    cfg = Config.fromfile(CONFIGS / 'eva02_ti_demo_det.py')
    cfg.merge_from_dict({key: value})
    wanted = '' if value == '' else ', wanted a whole number from 1 on'
    with pytest.raises(PreflightError, match=f'{key}: {said}{wanted}'):
        check_settings(cfg, 'train')
    check_settings(cfg, 'test')
    if value == '':
        return
    cfg.merge_from_dict({key: -1 if key.endswith('.interval') else 7})
    check_settings(cfg, 'train')
