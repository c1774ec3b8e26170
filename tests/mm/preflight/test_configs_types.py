"""Types that no registry has, in every place of a config; those that have another scope, or are given otherwise."""
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from apt_dense.mm.preflight.configs_types import check_types

CONFIGS = Path(__file__).parents[3] / 'configs'
SPLITS = ('train', 'val', 'test')


def found(cfg: Config, *splits: str) -> dict[str, str]:
    return {finding.where: str(finding) for finding in check_types(cfg, splits or SPLITS)}


def changed(task: str, **options) -> Config:
    cfg = Config.fromfile(CONFIGS / f'eva02_ti_demo_{task}.py')
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
    return cfg


@pytest.mark.parametrize(('task', 'key', 'kind', 'near'), [
    ('det', 'train_dataloader.dataset', 'CheckedCocoDatset', 'CheckedCocoDataset'),
    ('det', 'val_dataloader.dataset', 'CocoDatset', 'CocoDataset'),
    ('det', 'train_dataloader.dataset.pipeline.1', 'LoadAnotations', 'LoadAnnotations'),
    ('seg', 'train_dataloader.dataset', 'BaseSegDatset', 'BaseSegDataset'),
    ('seg', 'test_dataloader.dataset.pipeline.0', 'LoadImagFromFile', 'LoadImageFromFile'),
    ('det', 'train_dataloader.sampler', 'InfinitSampler', 'InfiniteSampler'),
    ('det', 'val_evaluator', 'CocoMetrics', 'CocoMetric'),
    ('seg', 'test_evaluator', 'IouMetric', 'IoUMetric'),
    ('det', 'default_hooks.checkpoint', 'ChekpointHook', 'CheckpointHook'),
    ('det', 'optim_wrapper', 'OptimWraper', 'OptimWrapper'),
    ('det', 'optim_wrapper.optimizer', 'AdamWW', 'AdamW'),
    ('det', 'param_scheduler.0', 'LinearLr', 'LinearLR'),
    ('det', 'train_cfg', 'IterBasedTrainLop', 'IterBasedTrainLoop'),
    ('det', 'val_cfg', 'ValLop', 'ValLoop'),
    ('det', 'visualizer', 'DetLocalVisualiser', 'DetLocalVisualizer'),
    ('det', 'visualizer.vis_backends.0', 'LocalVisBackends', 'LocalVisBackend'),
    ('det', 'model', 'CascadeRCN', 'CascadeRCNN'),
    ('det', 'model.backbone', 'EVA02Backbon', None),
    ('det', 'model.roi_head.bbox_head.0', 'Shared2FCBBoxHed', 'Shared2FCBBoxHead'),
    ('seg', 'model.decode_head', 'UPerHed', 'UPerHead'),
    ('seg', 'model.data_preprocessor', 'SegDataPreprocesor', 'SegDataPreProcessor'),
])
def test_a_type_that_is_not_registered(task, key, kind, near):
    messages = found(changed(task, **{key: dict(type=kind)}))
    message = messages.pop(f'{key}.type')
    assert messages == {} and f'{kind!r} is not in the registry of ' in message and '[type-not-registered]' in message
    assert near is None or near in message.partition('nearest: ')[2].partition('. ')[0].split(', ')


def test_inside_of_wrappers_steps_and_lists():
    cfg = changed('det')
    wrapped = cfg.train_dataloader.dataset
    wrapped.pipeline[1] = dict(type='RandomApply', prob=0.5, transforms=[dict(type='RandomFlp')])
    cfg.train_dataloader.dataset = dict(type='ConcatDatset', datasets=[dict(type='RepeatDataset', dataset=wrapped)])
    cfg.val_evaluator = [cfg.val_evaluator, dict(type='DumpDetReslts')]
    cfg.test_evaluator = dict(metrics=[dict(type='CocoMetrc')])
    cfg.custom_hooks = [dict(type='EMAHok')]
    assert set(found(cfg)) == {
        'train_dataloader.dataset.type', 'val_evaluator.1.type', 'test_evaluator.metrics.0.type',
        'custom_hooks.0.type', 'train_dataloader.dataset.datasets.0.dataset.pipeline.1.transforms.0.type'}


def test_a_constructor_is_a_type_too():
    cfg = changed('det', optim_wrapper__constructor='LayerDecayOptimizerConstructr')
    message = found(cfg)['optim_wrapper.constructor']
    assert 'LayerDecayOptimizerConstructor' in message.partition('nearest: ')[2]


def test_only_what_the_splits_use():
    cfg = changed('det', val_evaluator__type='CocoMetrics', optim_wrapper__type='OptimWraper')
    assert set(found(cfg, 'train')) == {'optim_wrapper.type'} and found(cfg, 'test') == {}


def test_a_type_that_is_registered_for_something_else():
    assert "'ResNet' is not in the registry of datasets" in found(
        changed('det', train_dataloader__dataset__type='ResNet'))['train_dataloader.dataset.type']


def test_a_type_deep_in_a_model_is_a_warning():
    messages = found(changed('det', model__roi_head__bbox_head=[dict(type='Shared2FCBBoxHead', loss_cls=dict(
        type='CrossEntropyLos'))]))
    message = messages['model.roi_head.bbox_head.0.loss_cls.type']
    assert '[type-unknown]' in message and 'CrossEntropyLoss' in message


def test_augmentation_in_testing_that_may_not_be_used_is_a_warning():
    cfg = changed('det', tta_model=dict(type='DetTTAModl'), tta_pipeline=[dict(type='TestTimeAg')])
    messages = found(cfg)
    assert set(messages) == {'tta_model.type', 'tta_pipeline.0.type'}
    assert all('[type-unknown]' in message for message in messages.values())


@pytest.mark.parametrize(('key', 'kind'), [
    ('train_dataloader.dataset', 'mmdet.CocoDataset'), ('train_dataloader.dataset', 'mmseg.BaseSegDataset'),
    ('train_dataloader.dataset.pipeline.1', 'mmseg.LoadAnnotations'), ('model.backbone', 'mmseg.MixVisionTransformer'),
    ('optim_wrapper.optimizer', 'SGD'), ('optim_wrapper.optimizer', 'torch.optim.RAdam'),
    ('optim_wrapper.optimizer', torch.optim.SGD), ('default_hooks.checkpoint', 'mmengine.CheckpointHook'),
    ('param_scheduler.0', 'mmdet.QuadraticWarmupLR'), ('visualizer', 'mmengine.Visualizer'),
    ('model.rpn_head', 'mmdet.RPNHead'), ('train_dataloader.dataset', 'mmengine.dataset.RepeatDataset')])
def test_other_scopes_modules_and_classes(key, kind):
    assert found(changed('det', **{key: dict(type=kind)})) == {}


def test_a_scope_of_a_part_of_the_config():
    cfg = changed('det', model__backbone=dict(_delete_=True, type='MixVisionTransformer'))
    assert 'mmseg.MixVisionTransformer' in found(cfg)['model.backbone.type']
    cfg.model.backbone['_scope_'] = 'mmseg'
    assert found(cfg) == {}


def test_a_package_that_is_not_installed():
    message = found(changed('det', model__backbone__type='no_such_package.ResNet'))['model.backbone.type']
    assert "'no_such_package.ResNet', and no_such_package is not installed" in message


def test_what_a_custom_import_registers(tmp_path, monkeypatch):
    (tmp_path / 'hooks_of_this_test.py').write_text(
        'from mmengine.hooks import Hook\nfrom mmengine.registry import HOOKS\n\n\n'
        '@HOOKS.register_module()\nclass HookOfThisTest(Hook):\n    pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    code = f"_base_ = '{CONFIGS}/eva02_ti_demo_det.py'\ncustom_hooks = [dict(type='HookOfThisTest')]\n"
    (tmp_path / 'without.py').write_text(code)
    (tmp_path / 'with.py').write_text(
        f"{code}custom_imports = dict(imports=['apt_dense.mm.det', 'hooks_of_this_test'])\n")
    assert set(found(Config.fromfile(tmp_path / 'without.py'))) == {'custom_hooks.0.type'}
    assert found(Config.fromfile(tmp_path / 'with.py')) == {}


def test_types_of_other_packages_and_of_operators():
    cfg = changed('det')
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='Albu', transforms=[dict(type='RandomBrightness')]))
    cfg.model.test_cfg.rcnn.nms = dict(type='soft_nms', iou_threshold=0.5)
    assert found(cfg) == {}
