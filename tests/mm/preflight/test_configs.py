"""Every config of the project and of its documents is without findings; a mistake of each kind is found."""
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from apt_dense.mm.preflight.configs import RULES, check_config
from apt_dense.mm.preflight.findings import STOP, WARN

CONFIGS = Path(__file__).parents[3] / 'configs'
SPLITS = ('train', 'val', 'test')
LEAVES = sorted(path.stem for path in CONFIGS.glob('*.py'))
BASED = re.compile(r"```python\n(_base_ = .*?)```", re.DOTALL)
DOCUMENTED = [code for name in ('get_started', 'training', 'thresholds') for code in BASED.findall(
    (CONFIGS.parent / f'docs/{name}.md').read_text())]


def load(task: str) -> Config:
    return Config.fromfile(CONFIGS / f'eva02_ti_demo_{task}.py')


def found(cfg: Config, *splits: str) -> dict[str, str]:
    """{rule: the messages}"""
    messages = {}
    for finding in check_config(cfg, splits or SPLITS):
        assert finding.rule in RULES
        messages[finding.rule.name] = messages.get(finding.rule.name, '') + f'{finding}\n'
    return messages


@pytest.mark.parametrize('name', LEAVES)
def test_the_projects_configs_are_without_findings(name):
    assert found(Config.fromfile(CONFIGS / f'{name}.py')) == {}


@pytest.mark.parametrize('index', range(len(DOCUMENTED)))
def test_documented_configs_are_without_findings(index, tmp_path):
    code = DOCUMENTED[index].replace("'configs/", f"'{CONFIGS}/").replace("'./", f"'{CONFIGS}/")
    (tmp_path / 'own.py').write_text(code)
    assert found(Config.fromfile(tmp_path / 'own.py')) == {}


def test_there_are_documented_configs_and_rules_have_names_of_their_own():
    assert len(DOCUMENTED) >= 4
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert {rule.severity for rule in RULES} == {STOP, WARN}


@pytest.mark.parametrize('split', ['val', 'test'])
@pytest.mark.parametrize('wrap', [False, True])
def test_the_evaluator_reads_another_file(split, wrap, tmp_path):
    cfg = load('det')
    cfg[f'{split}_dataloader'].dataset.data_root = 'data/other/'
    if wrap:
        loader = cfg[f'{split}_dataloader']
        loader.dataset = dict(type='RepeatDataset', times=1, dataset=loader.dataset)
    message = found(cfg)['evaluator-reads-another-file']
    assert message.startswith(f'{split}_evaluator.ann_file: data/demo/annotations/instances_val.json, and '
                              f'{split}_dataloader.dataset')
    assert 'is data/other/annotations/instances_val.json' in message
    evaluator = cfg[f'{split}_evaluator']
    cfg[f'{split}_evaluator'] = [evaluator, dict(type='DumpDetResults', out_file_path='a.pkl')]
    assert f'{split}_evaluator.0.ann_file' in found(cfg)['evaluator-reads-another-file']


def test_one_file_by_two_names(tmp_path, monkeypatch):
    cfg = load('det')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data/demo/annotations').mkdir(parents=True)
    file = tmp_path / 'data/demo/annotations/instances_val.json'
    file.write_text(json.dumps({}))
    (tmp_path / 'link.json').symlink_to(file)
    (tmp_path / 'copy.json').write_text(json.dumps({}))
    for name in (str(file), './data/demo/annotations/../annotations/instances_val.json', 'link.json', 'copy.json'):
        cfg.val_evaluator.ann_file = name
        assert found(cfg) == {}
    cfg.val_evaluator.ann_file = None  # taken from the dataset
    assert found(cfg) == {}


@pytest.mark.parametrize(('monitor', 'message'), [
    ('coco/segm_map', 'nearest: coco/segm_mAP'),
    ('bbox_mAP', "'bbox_mAP', and val_evaluator gives coco/bbox_mAP, coco/bbox_mAP_50, coco/bbox_mAP_75, coco/bbox"),
    ('mIoU', 'coco/segm_mAP_l'),
])
def test_a_metric_that_is_not_given(monitor, message):
    cfg = load('det')
    cfg.default_hooks.checkpoint.save_best = ['coco/bbox_mAP', monitor]
    assert f'default_hooks.checkpoint.save_best: {monitor!r}' in found(cfg)['metric-not-given']
    assert message in found(cfg)['metric-not-given']
    cfg.default_hooks.checkpoint.save_best = 'coco/bbox_mAP'
    cfg.custom_hooks = [dict(type='EarlyStoppingHook', monitor=monitor)]
    assert 'custom_hooks.0.monitor' in found(cfg)['metric-not-given']
    cfg.custom_hooks = []
    cfg.param_scheduler = [dict(type='ReduceOnPlateauLR', monitor=monitor, by_epoch=False)]
    assert 'param_scheduler.0.monitor' in found(cfg)['metric-not-given']
    assert found(cfg, 'test') == {}  # nothing is trained


def given(evaluator, monitor: str, task: str = 'det') -> dict[str, str]:
    cfg = load(task)
    cfg.val_evaluator = evaluator
    cfg.default_hooks.checkpoint.update(save_best=monitor, rule='greater')
    return found(cfg, 'train')


def test_metrics_follow_from_the_evaluators_settings():
    boxes = dict(type='CocoMetric', metric=['bbox'])
    assert given(boxes, 'coco/bbox_mAP') == {}
    assert 'gives coco/bbox_mAP' in given(boxes, 'coco/segm_mAP')['metric-not-given']
    assert given(dict(boxes, prefix='mine'), 'mine/bbox_mAP_50') == {}
    assert given(dict(boxes, classwise=True), 'coco/kite_precision') == {}
    assert given(dict(boxes, metric_items=['mAP_s']), 'coco/bbox_mAP_s') == {}
    assert 'metric-not-given' in given(dict(boxes, metric_items=['mAP_s']), 'coco/bbox_mAP')
    assert given(dict(boxes, metric='proposal'), 'coco/AR@300') == {}
    assert given(dict(boxes, metric='proposal_fast', proposal_nums=[7]), 'coco/AR@7') == {}
    maps = dict(type='IoUMetric', iou_metrics=['mDice'])
    assert given(maps, 'mDice', 'seg') == {}
    assert "'mIoU', and val_evaluator gives aAcc, mDice, mAcc" in given(maps, 'mIoU', 'seg')['metric-not-given']
    assert given([maps, dict(boxes, prefix='b')], 'b/bbox_mAP', 'seg') == {}
    assert given(dict(type='LVISMetric'), 'lvis/anything') == {}  # its names are not known here


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_validation_on_the_training_data(task):
    cfg = load(task)
    assert 'validated-on-training-data' not in found(cfg)
    ours, theirs = cfg.val_dataloader.dataset, cfg.train_dataloader.dataset
    ours.update(ann_file=theirs.get('ann_file', ''), data_prefix=theirs.data_prefix)
    if task == 'det':
        cfg.val_evaluator.ann_file = ours.data_root + ours.ann_file
    message = found(cfg)['validated-on-training-data']
    assert message.startswith('val_dataloader.dataset: data/demo/') and ', as train_dataloader.dataset. Give' in message
    assert 'validated-on-training-data' not in found(cfg, 'test')


def test_the_automatic_metric():
    assert given(dict(type='CocoMetric'), 'auto') == {}
    assert "takes the first: aAcc, mIoU, mAcc" in given(dict(type='IoUMetric'), 'auto', 'seg')['save-best-auto']
    nothing = dict(type='CocoMetric', format_only=True, outfile_prefix='x')
    assert 'gives no metric' in given(nothing, 'auto')['metric-not-given']


def test_a_metric_of_unknown_direction():
    cfg = load('seg')
    cfg.val_evaluator.iou_metrics = ['mFscore']
    cfg.default_hooks.checkpoint.save_best = 'mFscore'
    assert "'mFscore' without a rule" in found(cfg)['metric-without-rule']
    cfg.default_hooks.checkpoint.rule = 'greater'
    assert found(cfg) == {}


def test_nothing_to_monitor():
    cfg = load('det')
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint.save_best = 'auto'
    assert 'nothing is validated' in found(cfg)['metric-not-given']


def write_pictures(root: Path, *sizes: tuple[int, int]) -> None:
    for name, size in enumerate(sizes):
        for folder, picture in (('val', np.zeros((*size, 3), np.uint8)), ('semantic/val', np.zeros(size, np.uint8))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(root / folder / f'{name}.{"jpg" if folder == "val" else "png"}'), picture)


@pytest.mark.parametrize('split', ['val', 'test'])
def test_a_validation_batch_of_several_sizes(split, tmp_path):
    write_pictures(tmp_path, (20, 30), (30, 20))
    cfg = load('seg')
    loader = cfg[f'{split}_dataloader']
    loader.dataset.data_root = str(tmp_path)
    assert found(cfg) == {}
    loader.batch_size = 2
    message = found(cfg)['validation-batch-of-sizes']
    assert message.startswith(f'{split}_dataloader.batch_size: 2, and the pictures have 2 sizes: 0.jpg 256x384 px, 1.')
    cfg.model.data_preprocessor.test_cfg = dict(size=(512, 512))
    assert found(cfg) == {}


@pytest.mark.parametrize(('sizes', 'resize'), [
    ([(20, 30), (20, 30)], {}), ([(20, 30), (40, 60)], {}), ([(20, 30), (30, 20)], dict(keep_ratio=False))])
def test_validation_batches_of_one_size(sizes, resize, tmp_path):
    write_pictures(tmp_path, *sizes)
    cfg = load('seg')
    cfg.val_dataloader.dataset.data_root = str(tmp_path)
    cfg.val_dataloader.batch_size = 2
    next(step for step in cfg.val_dataloader.dataset.pipeline if step.type == 'Resize').update(resize)
    assert found(cfg) == {}


@pytest.mark.parametrize('step', [dict(type='Albu', transforms=[]), dict(type='RandomResize', scale=(64, 64)),
                                  dict(type='mine.ToOneSize')])
def test_a_step_that_may_make_one_size(step, tmp_path):
    write_pictures(tmp_path, (20, 30), (30, 20))
    cfg = load('seg')
    cfg.val_dataloader.dataset.data_root = str(tmp_path)
    cfg.val_dataloader.batch_size = 2
    assert 'validation-batch-of-sizes' in found(cfg)
    cfg.val_dataloader.dataset.pipeline.insert(1, step)
    assert 'validation-batch-of-sizes' not in found(cfg)


def test_format_only_without_a_place():
    cfg = load('det')
    cfg.test_evaluator.format_only = True
    assert found(cfg)['format-only-without-place'].startswith('test_evaluator.outfile_prefix: not set')
    cfg.test_evaluator.outfile_prefix = 'results/a'
    assert found(cfg) == {}
    cfg = load('seg')
    cfg.test_evaluator.format_only = True  # tools/test.py asks for --out
    assert found(cfg) == {}
    cfg.val_evaluator.format_only = True
    assert found(cfg)['format-only-without-place'].startswith('val_evaluator.output_dir: not set')


def test_masks():
    cfg = load('det')
    cfg.model.roi_head.mask_head = None
    message = found(cfg)['masks-wanted']
    assert 'val_evaluator.metric' in message and 'test_evaluator.metric' in message
    cfg.val_evaluator.metric = cfg.test_evaluator.metric = 'bbox'
    assert found(cfg) == {}
    cfg = load('det')
    cfg.train_dataloader.dataset.pipeline[1].pop('with_mask')
    assert found(cfg)['masks-wanted'].startswith('train_dataloader.dataset.pipeline.1.with_mask: not set')


@pytest.mark.parametrize('split', SPLITS)
def test_workers_settings_without_workers(split):
    cfg = load('det')
    cfg[f'{split}_dataloader'].update(num_workers=0, prefetch_factor=2)
    message = found(cfg)['workers-settings-without-workers']
    assert f'{split}_dataloader.persistent_workers: True, and {split}_dataloader.num_workers is 0' in message
    assert f'{split}_dataloader.prefetch_factor: 2' in message
    cfg[f'{split}_dataloader'].update(persistent_workers=False, prefetch_factor=None)
    assert found(cfg) == {}


@pytest.mark.parametrize('train_cfg', [dict(type='EpochBasedTrainLoop', max_epochs=2),
                                       dict(by_epoch=True, max_epochs=2)])
def test_epochs_of_an_endless_sampler(train_cfg):
    cfg = load('det')
    cfg.train_cfg = dict(train_cfg)
    message = found(cfg)['endless-sampler']
    assert message.startswith('train_dataloader.sampler.type: InfiniteSampler has no end, and train_cfg counts epochs')
    cfg.train_dataloader.sampler.type = 'DefaultSampler'
    assert 'endless-sampler' not in found(cfg)
    cfg.train_dataloader.batch_sampler = dict(type='TokenBalancedBatchSampler', token_counts='a')
    assert 'batch_sampler.type' in found(cfg)['endless-sampler']


@pytest.mark.parametrize('split', ['val', 'test'])
def test_an_endless_evaluation(split):
    cfg = load('seg')
    cfg[f'{split}_dataloader'].sampler = dict(type='InfiniteSampler')
    assert f'{split}_dataloader.sampler.type' in found(cfg)['endless-sampler']


@pytest.mark.parametrize('split', ['val', 'test'])
@pytest.mark.parametrize(('absent', 'given'), [('evaluator', 'dataloader'), ('dataloader', 'evaluator')])
def test_an_incomplete_split(split, absent, given):
    cfg = load('det')
    cfg[f'{split}_{absent}'] = None
    assert f'{split}_{absent}: not set, and {split}_{given} is' in found(cfg)['incomplete-split']


def test_epochs_counted_in_a_training_of_iterations():
    cfg = load('det')
    cfg.param_scheduler = [dict(type='MultiStepLR', milestones=[8, 11])]
    cfg.default_hooks.checkpoint.pop('by_epoch')
    message = found(cfg)['counted-in-epochs']
    assert 'param_scheduler.0.by_epoch: True, and train_cfg.max_iters is 500' in message
    assert 'default_hooks.checkpoint.by_epoch' in message


def test_what_comes_after_the_end():
    cfg = load('det')
    cfg.train_cfg.update(max_iters=10, val_begin=20)
    assert 'param_scheduler.1.end: 500, and train_cfg.max_iters is 10' in found(cfg)['later-than-the-end']
    assert 'train_cfg.val_begin: 20' in found(cfg)['later-than-the-end']


@pytest.mark.parametrize('kind', ['CosineAnnealingLR', 'PolyLR'])
@pytest.mark.parametrize('by_epoch', [False, True])
def test_a_rate_that_falls_to_0_before_the_end(kind, by_epoch):
    cfg, unit = load('det'), 'max_epochs' if by_epoch else 'max_iters'
    if by_epoch:
        cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=20)
    last = cfg.train_cfg[unit]
    for end, eta_min, more, wanted in ((1, 0, [], True), (last, 0, [], False), (1, 1e-6, [], False),
                                       (1, 0, [dict(type='ConstantLR', begin=1, end=last, by_epoch=by_epoch)], False)):
        cfg.param_scheduler = [dict(type=kind, begin=0, end=end, eta_min=eta_min, by_epoch=by_epoch), *more]
        message = found(cfg).get('rate-of-zero', '')
        assert bool(message) == wanted
        assert not wanted or f'param_scheduler.0.end: 1, and train_cfg.{unit} is {last}' in message


@pytest.mark.parametrize(('settings', 'message'), [
    (dict(backend_args=dict(backend='http')), "backend: 'http', and train_dataloader.dataset.ann_file is data/demo/"),
    (dict(backend_args=dict(backend='petrel')), "'petrel' needs the package petrel_client"),
    (dict(backend_args=dict(backend='htp')), "'htp' is not one of local"),
    (dict(backend_args=dict(backend='local'), data_root='s3://bucket/'), "'local', and train_dataloader.dataset.ann"),
])
def test_backends_that_do_not_fit(settings, message):
    cfg = load('det')
    cfg.train_dataloader.dataset.update(settings)
    assert message in found(cfg, 'train')['storage-that-does-not-fit']


def test_backends_of_steps_and_metrics():
    cfg = load('det')
    cfg.val_dataloader.dataset.pipeline[0].backend_args = dict(backend='http')
    cfg.val_evaluator.backend_args = dict(backend='http')
    message = found(cfg)['storage-that-does-not-fit']
    assert 'val_dataloader.dataset.pipeline.0.backend_args.backend' in message
    assert 'val_evaluator.backend_args' in message


def test_backends_that_fit():
    cfg = load('det')
    for node in (cfg.train_dataloader.dataset, cfg.train_dataloader.dataset.pipeline[0]):
        node.backend_args = dict(backend='http')
    cfg.train_dataloader.dataset.data_root = 'https://host/data/'
    assert found(cfg, 'train') == {}
    cfg.train_dataloader.dataset.update(data_root='data/demo/', backend_args=dict(backend='local'))
    cfg.train_dataloader.dataset.pipeline[0].backend_args = None
    assert found(cfg, 'train') == {}
    cfg = load('seg')
    cfg.train_dataloader.dataset.data_root = 'https://host/data/'
    assert 'cannot be listed' in found(cfg, 'train')['storage-that-does-not-fit']


def mixed(step: dict, inside: bool = False, with_masks: bool = True) -> Config:
    """A detector's config whose training mixes samples as mmdetection wants it."""
    cfg = load('det')
    inner = cfg.train_dataloader.dataset
    first, rest = [*inner.pipeline[:2], dict(type='Pad', size=(256, 256))], inner.pipeline[2:]
    first[1].with_mask = with_masks
    steps = [dict(type='RandomApply', transforms=[step])] if inside else [step]
    inner.pipeline = first
    cfg.train_dataloader.dataset = dict(type='MultiImageMixDataset', dataset=inner, pipeline=[*steps, *rest])
    return cfg


@pytest.mark.parametrize('kind', ['CopyPaste', 'Mosaic', 'MixUp'])
def test_mixing(kind):
    step = dict(type=kind)
    cfg = load('det')
    cfg.train_dataloader.dataset.pipeline.insert(2, step)
    message = found(cfg)['mixing-without-samples']
    assert message.startswith(f'train_dataloader.dataset.pipeline.2: {kind} stands in the pipeline of a CheckedCocoDat')
    assert "dict(type='MultiImageMixDataset'" in message
    alone = mixed(step, with_masks=kind == 'CopyPaste')
    alone.model.roi_head.mask_head = None
    alone.val_evaluator.metric = alone.test_evaluator.metric = 'bbox'
    assert found(alone) == {}
    assert 'stands inside another step' in found(mixed(step, inside=True))['mixing-without-samples']
    cfg = mixed(step)
    cfg.train_dataloader.dataset.dataset.pipeline.append(dict(type='PackDetInputs'))
    assert f'packs the samples before {kind} mixes them' in found(cfg)['mixing-without-samples']


@pytest.mark.parametrize('kind', ['Mosaic', 'MixUp'])
def test_mixing_that_leaves_masks_behind(kind):
    message = found(mixed(dict(type=kind)))['mixing-without-masks']
    assert message.startswith('train_dataloader.dataset.dataset.pipeline.1.with_mask: True, and ')
    assert 'CachedMosaic or CachedMixUp' in message


def test_pasting_into_pictures_of_other_sizes():
    cfg = mixed(dict(type='CopyPaste'))
    assert found(cfg) == {}
    del cfg.train_dataloader.dataset.dataset.pipeline[2]
    assert list(found(cfg)) == ['pasting-into-other-sizes']


def test_copied_objects_have_masks():
    cfg = mixed(dict(type='CopyPaste'))
    cfg.train_dataloader.dataset.dataset.pipeline[1].pop('with_mask')
    assert 'no masks are loaded, and CopyPaste wants them' in found(cfg)['mixing-without-samples']


def test_mixing_that_keeps_its_own_samples_and_that_of_segmentation():
    cfg = load('det')
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='CachedMosaic'))
    assert found(cfg) == {}
    cfg = load('seg')
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='RandomMosaic', prob=1))
    assert 'RandomMosaic stands in the pipeline of a BaseSegDataset' in found(cfg)['mixing-without-samples']
