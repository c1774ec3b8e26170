"""Settings that their own classes refuse are told before a model is built."""
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS, TRANSFORMS

from apt_dense.mm.preflight.configs_building import check_building
from tests.locations import CONFIGS


def found(changes: dict, task: str = 'det', splits: tuple[str, ...] = ('train', 'val')) -> dict[str, str]:
    cfg = Config.fromfile(CONFIGS / f'apt_eva02_ti_demo_{task}.py')
    cfg.merge_from_dict(changes)
    return {finding.where: str(finding) for finding in check_building(cfg, splits)}


@pytest.mark.parametrize(('key', 'value', 'where', 'said'), [
    ('optim_wrapper.optimizer.lr', -1, 'optim_wrapper.optimizer', 'Invalid learning rate: -1'),
    ('optim_wrapper.optimizer.lr', '1e-4x', 'optim_wrapper.optimizer', "lr='1e-4x'"),
    ('optim_wrapper.optimizer.lr', float('nan'), 'optim_wrapper.optimizer', 'Invalid learning rate: nan'),
    ('optim_wrapper.optimizer.betas', (2, 0.9), 'optim_wrapper.optimizer', 'Invalid beta parameter at index 0: 2'),
    ('optim_wrapper.optimizer.weight_decay', -1, 'optim_wrapper.optimizer', 'Invalid weight_decay value: -1'),
    ('optim_wrapper.accumulative_counts', 0, 'optim_wrapper', 'greater than or equal to 1'),
    ('optim_wrapper.clip_grad.max_norm', 'a', 'optim_wrapper', "could not convert string to float: 'a'"),
    ('param_scheduler.0.begin', 500, 'param_scheduler.0', 'end should be larger than begin'),
    ('param_scheduler.0.start_factor', 5, 'param_scheduler.0', 'should between 0 and 1. Change it'),
    ('train_dataloader.batch_size', 0, 'train_dataloader', 'batch_size should be a positive integer'),
    ('val_dataloader.num_workers', -1, 'val_dataloader', 'num_workers option should be non-negative'),
    ('train_dataloader.dataset.pipeline.2.prob', 50, 'train_dataloader.dataset.pipeline.2', 'prob'),
    ('default_hooks.checkpoint.save_best', 5, 'default_hooks.checkpoint', 'save_best'),
])
def test_what_a_class_refuses(key, value, where, said):
    (place, message), = found({key: value}).items()
    assert place == where and said in message


@pytest.mark.parametrize(('changes', 'said'), [
    (dict(prob=50.0), 'RandomFlip (prob=50.0): AssertionError: assert 0 <= prob <= 1'),  # its line: it has no words
    (dict(type='RandomCrop', crop_size=(0, 64)), 'AssertionError: assert crop_size[0] > 0'),
    (dict(type='Resize', scale=(64, 64), scale_factor='big'), 'Resize'),
    (dict(type='PhotoMetricDistortion', brightness_delta=3), ''),
])
def test_transforms_of_a_segmentor(changes, said):
    place = 'train_dataloader.dataset.pipeline.4'
    cfg = Config.fromfile(CONFIGS / 'apt_eva02_ti_demo_seg.py')
    assert cfg.train_dataloader.dataset.pipeline[4].type == 'RandomFlip'
    steps = [dict(step) for step in cfg.train_dataloader.dataset.pipeline]
    steps[4] = dict(changes, type=changes.get('type', 'RandomFlip'))
    messages = found({'train_dataloader.dataset.pipeline': steps}, 'seg')
    assert set(messages) <= {place} and said in messages.get(place, '')
    assert bool(messages) == (changes.get('type') != 'PhotoMetricDistortion')


def test_the_config_stays_as_it_is():
    """OptimWrapper takes the type out of clip_grad, and would clip otherwise the next time."""
    cfg = Config.fromfile(CONFIGS / 'apt_eva02_ti_demo_det.py')
    cfg.optim_wrapper.clip_grad = dict(type='value', clip_value=0.5)
    before = cfg.to_dict()
    for _ in range(2):
        assert list(check_building(cfg, ('train', 'val', 'test'))) == []
    assert cfg.to_dict() == before


def test_clipping_is_tried_where_gradients_are_accumulated():
    assert 'optim_wrapper' in found({'optim_wrapper.accumulative_counts': 4, 'optim_wrapper.clip_grad.max_norm': 'a'})


def test_several_optimisers():
    wrapper = dict(constructor='Mine', generator=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)),
                   critic=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=-1)))
    cfg = Config.fromfile(CONFIGS / 'apt_eva02_ti_demo_det.py')
    cfg.optim_wrapper, cfg.param_scheduler = wrapper, dict(generator=[dict(type='LinearLR', begin=5, end=1)])
    assert [finding.where for finding in check_building(cfg, ('train',))] == ['optim_wrapper.critic.optimizer']


@pytest.mark.parametrize('step', [
    dict(type='Albu', transforms=[dict(type='RandomCrop', height=256, width=256), dict(type='Normalize')]),
    dict(type='StepThatFails', resize=dict(type='Resize', keep_ratio=True)),
    dict(type='RandomSamplingNegPos', tokenizer_name='bert-base-uncased')])
def test_what_stands_in_steps_of_others_is_theirs(step):
    """Albumentations has transforms of the same names; a tokenizer would be downloaded."""
    messages = found({'train_dataloader.dataset.pipeline': [step]})
    assert not any('transforms' in key or 'resize' in key for key in messages)
    assert step['type'] == 'Albu' or messages == {}


def test_an_inner_step_is_told_once():
    step = dict(type='RandomApply', prob=0.5, transforms=[dict(type='RandomFlip', prob=50)])
    assert list(found({'train_dataloader.dataset.pipeline': [step]})) == [
        'train_dataloader.dataset.pipeline.0.transforms.0']


def test_packages_of_trackers(monkeypatch):
    backends = {'visualizer.vis_backends': [dict(type='LocalVisBackend'), dict(type='WandbVisBackend')]}
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    message = found(backends)['visualizer.vis_backends.1.type']
    assert 'WandbVisBackend needs wandb: pip install wandb. Install it, or take the backend out' in message
    monkeypatch.setattr('importlib.util.find_spec', lambda name: SimpleNamespace(origin=None))
    assert list(found(backends)) == ['visualizer.vis_backends.1.type']  # the folder wandb/, which WandB makes
    monkeypatch.setattr('importlib.util.find_spec', lambda name: SimpleNamespace(origin='wandb/__init__.py'))
    assert found(backends) == {}


def test_only_what_is_used():
    assert found({'optim_wrapper.optimizer.lr': -1, 'train_dataloader.batch_size': 0}, splits=('test',)) == {}


def test_classes_of_the_user_are_left_to_themselves():
    """They may do more than keep their settings, and their traceback is of use."""
    class HookThatFails(Hook):
        def __init__(self):
            raise ValueError('built')

    class StepThatFails:
        def __init__(self):
            raise ValueError('built')

    class OwnWrapper(OptimWrapper):
        """It clips in a way of its own."""

    HOOKS.register_module(module=HookThatFails)
    OPTIM_WRAPPERS.register_module(module=OwnWrapper)
    TRANSFORMS.register_module(module=StepThatFails)
    try:
        assert found({'custom_hooks': [dict(type='HookThatFails')],
                      'train_dataloader.dataset.pipeline': [dict(type='GuardSamples', transforms=[
                          dict(type='StepThatFails')]), dict(type='StepThatFails')],
                      'optim_wrapper.type': 'OwnWrapper', 'optim_wrapper.clip_grad': dict(type='agc')}) == {}
    finally:
        HOOKS.module_dict.pop('HookThatFails')
        OPTIM_WRAPPERS.module_dict.pop('OwnWrapper')
        TRANSFORMS.module_dict.pop('StepThatFails')
