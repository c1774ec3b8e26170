"""Names of metrics that an evaluator does not know."""
from pathlib import Path

import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.registry import METRICS
from mmseg.evaluation import IoUMetric

from apt_dense.mm.preflight.configs_metrics import check_metrics

CONFIGS = Path(__file__).parents[3] / 'configs'


def found(settings: dict | list, task: str = 'det', split: str = 'val') -> dict[str, str]:
    cfg = Config.fromfile(CONFIGS / f'eva02_ti_demo_{task}.py')
    cfg[f'{split}_evaluator'] = settings
    return {finding.where: str(finding) for finding in check_metrics(cfg, (split,))}


@pytest.mark.parametrize('split', ['val', 'test'])
@pytest.mark.parametrize(('kind', 'settings', 'key', 'said'), [
    ('CocoMetric', dict(metric='bbx'), 'metric', "'bbx', and CocoMetric knows bbox, segm, proposal, proposal_fast; "
     'nearest: bbox'),
    ('CheckedCocoMetric', dict(metric=['bbox', 'mask']), 'metric', "'mask', and CocoMetric knows bbox"),
    ('CocoMetric', dict(metric=('bbox', 'segm')), 'metric', "('bbox', 'segm') is a tuple, and CocoMetric takes a list"),
    ('CocoMetric', dict(metric_items=['mAP_5']), 'metric_items', "'mAP_5', and CocoMetric knows mAP, mAP_50"),
    ('mmdet.CocoMetric', dict(metric='BBOX'), 'metric', 'nearest: bbox'),
    ('VOCMetric', dict(metric='map'), 'metric', 'nearest: mAP'),
    ('VOCMetric', dict(eval_mode='12points'), 'eval_mode', 'nearest: 11points'),
    ('CrowdHumanMetric', dict(metric=['AP', 'JJ']), 'metric', 'knows MR, AP, JI'),
    ('mmseg.IoUMetric', dict(iou_metrics=['mIou']), 'iou_metrics', 'nearest: mIoU'),
    ('SemSegMetric', dict(iou_metrics='mDic'), 'iou_metrics', 'nearest: mDice'),
])
def test_a_name_that_the_metric_does_not_know(kind, settings, key, said, split):
    for place, evaluator in (('', dict(type=kind, **settings)), ('.0', [dict(type=kind, **settings)])):
        message, = found(evaluator, split=split).values()
        assert message.startswith(f'{split}_evaluator{place}.{key}: ') and said in message


@pytest.mark.parametrize(('kind', 'settings'), [
    ('CocoMetric', {}), ('CocoMetric', dict(metric=['bbox', 'segm', 'proposal_fast'], metric_items=['mAP', 'AR@100'])),
    ('VOCMetric', dict(metric='mAP', eval_mode='area')), ('mmseg.IoUMetric', dict(iou_metrics='mIoU')),
    ('mmseg.IoUMetric', dict(iou_metrics=('mIoU', 'mFscore'))), ('NoSuchMetric', dict(metric='bbx'))])
def test_names_that_are_known(kind, settings):
    assert found(dict(type=kind, **settings)) == {}


def test_a_metric_of_ones_own_may_know_others():
    class MetricOfThisTest(CocoMetric):
        def __init__(self, *args, metric='count', **kwargs):
            super().__init__(*args, **kwargs)

    with_names = METRICS.register_module(name='MetricOfThisTest', module=MetricOfThisTest)
    try:
        assert found(dict(type='MetricOfThisTest', metric='count')) == {}
    finally:
        METRICS.module_dict.pop('MetricOfThisTest')
    assert with_names is MetricOfThisTest


@pytest.mark.parametrize(('kind', 'settings'), [
    (CocoMetric, dict(metric='bbx')), (CocoMetric, dict(metric=('bbox', 'segm')))])
def test_the_libraries_refuse_them_too(kind, settings):
    with pytest.raises(KeyError):
        kind(**settings)


def test_the_names_of_the_iou_metric_are_those_of_the_library():
    with pytest.raises(KeyError, match='mIou'):
        IoUMetric.total_area_to_metrics(*[torch.ones(2)] * 4, metrics=['mIou'])
