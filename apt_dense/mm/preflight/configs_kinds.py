"""Settings of another kind than is wanted: a text for a dict, a list for a text."""
import importlib.util
import logging
import os
from collections.abc import Iterator
from numbers import Integral
from typing import Any

from mmengine import registry
from mmengine.config import Config

from apt_dense.mm.preflight.datasets import datasets_of, metrics_of
from apt_dense.mm.preflight.findings import STOP, Finding, Rule, raise_if_stopped

Kinds = tuple[tuple[type, ...], str]  # and what is wanted

KIND = Rule(
    'setting-of-another-kind', STOP, 'a text where a dict is wanted, a number where a text is, and the like',
    'Write it in that form')
TEXT = Rule(
    'classes-are-a-text', STOP, 'metainfo.classes is a text, whose letters would be the classes',
    "Write a tuple: classes=('bolt',) with the comma, or name a file that lists one class a line")
EMPTY = Rule(
    'classes-are-empty', STOP, 'metainfo.classes without a name: no object would be left',
    "Name the classes: metainfo=dict(classes=('bolt', 'nut')), or leave metainfo out for those of the dataset's type")
SCOPE = Rule(
    'scope-unknown', STOP, 'a default_scope that is no package of OpenMMLab, nor any other',
    "Set it to 'mmdet' (detection), 'mmseg' (segmentation) or 'mmengine' (classification)")
RULES = (KIND, TEXT, EMPTY, SCOPE)

LISTS = (list, tuple)
PLAIN = (str, int, float, dict, set, *LISTS)  # of others, as functions and objects, the user knows what they are
NAMED = {'CocoDataset', 'BaseSegDataset'}  # whose classes choose what is kept
# {setting: (kinds, what is wanted)}; None is left to the classes.
OF_DATASETS: dict[str, Kinds] = {
    'data_root': ((str,), "a text: data_root='data/mine/'"),
    'ann_file': ((str,), "a text: ann_file='annotations/train.json'"),
    'data_prefix': ((dict,), "a dict: data_prefix=dict(img='images/'), for label maps "
                    "dict(img_path='images/', seg_map_path='labels/')"),
    'metainfo': ((dict,), "a dict: metainfo=dict(classes=('bolt', 'nut'))"),
    'filter_cfg': ((dict,), 'a dict: filter_cfg=dict(filter_empty_gt=True, min_size=32)'),
    'backend_args': ((dict,), "a dict: backend_args=dict(backend='local')"),
    'pipeline': (LISTS, "a list of steps: pipeline=[dict(type='LoadImageFromFile'), ...]"),
    'indices': ((Integral, *LISTS), 'a number or a list of numbers: indices=100'),
    'img_suffix': ((str, *LISTS), "a text: img_suffix='.jpg'"),
    'seg_map_suffix': ((str,), "a text: seg_map_suffix='.png'"),
}
OF_METRICS = {name: OF_DATASETS[name] for name in ('ann_file', 'backend_args')}
OF_LOADERS: dict[str, Kinds] = {
    'batch_size': ((Integral,), 'a whole number: batch_size=2'),
    'num_workers': ((Integral,), 'a whole number: num_workers=2'),
    'sampler': ((dict,), "a dict: sampler=dict(type='DefaultSampler', shuffle=False)"),
    'batch_sampler': ((dict,), "a dict: batch_sampler=dict(type='AspectRatioBatchSampler')"),
    'collate_fn': ((dict,), "a dict: collate_fn=dict(type='pseudo_collate')"),
    'dataset': ((dict, *LISTS), "a dict: dataset=dict(type='CheckedCocoDataset', ...)"),
}
HOOK = ((dict,), "a dict: dict(type='CheckpointHook', interval=1000)")
PART = ((dict, *LISTS), 'a dict: dict(type=...)')
# {place: (kinds, what is wanted)} of what every program reads; see _at for *.
OF_CONFIGS: dict[str, Kinds] = {
    'work_dir': ((str,), "a text: work_dir='work_dirs/mine'"),
    'load_from': ((str,), "a file: load_from='work_dirs/dense/iter_90000.pth'"),
    'resume': ((bool,), 'True or False; a checkpoint is named by --resume PATH'),
    'log_level': ((str, int), "a text: log_level='INFO'"),
    'model': ((dict,), 'a dict: model=dict(type=...)'),
    'model.backbone': ((dict, *LISTS), "a dict: backbone=dict(type='APTEVA02', ...)"),
    'model.trainable': (LISTS, "a list of what names of parameters begin with: trainable=['backbone.patch_embed.']"),
    'model.neck': PART, 'model.data_preprocessor': PART, 'model.rpn_head': PART, 'model.roi_head': PART,
    'model.bbox_head': PART, 'model.decode_head': PART, 'model.auxiliary_head': PART,
    'train_cfg': ((dict,), 'a dict: train_cfg=dict(max_iters=1000, val_interval=500)'),
    'val_cfg': ((dict,), 'a dict: val_cfg=dict()'), 'test_cfg': ((dict,), 'a dict: test_cfg=dict()'),
    'optim_wrapper': ((dict,), "a dict: optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-4))"),
    'optim_wrapper.optimizer': ((dict,), "a dict: optimizer=dict(type='AdamW', lr=1e-4)"),
    'optim_wrapper.paramwise_cfg': ((dict,), 'a dict: paramwise_cfg=dict(norm_decay_mult=0.0)'),
    'optim_wrapper.clip_grad': ((dict,), 'a dict: clip_grad=dict(max_norm=1.0)'),
    'param_scheduler': ((dict, *LISTS), "a list: param_scheduler=[dict(type='LinearLR', ...)]"),
    'param_scheduler.*': ((dict, *LISTS), "a dict: dict(type='LinearLR', start_factor=0.001, end=100)"),
    'default_hooks': ((dict,), "a dict: default_hooks=dict(checkpoint=dict(interval=1000))"),
    'default_hooks.*': HOOK,
    'custom_hooks': (LISTS, "a list: custom_hooks=[dict(type='EMAHook')]"), 'custom_hooks.*': HOOK,
    'env_cfg': ((dict,), "a dict: env_cfg=dict(dist_cfg=dict(backend='nccl'))"),
    'env_cfg.mp_cfg': ((dict,), "a dict: mp_cfg=dict(mp_start_method='fork')"),
    'env_cfg.dist_cfg': ((dict,), "a dict: dist_cfg=dict(backend='nccl')"),
    'randomness': ((dict,), 'a dict: randomness=dict(seed=0)'),
    'auto_scale_lr': ((dict,), 'a dict: auto_scale_lr=dict(base_batch_size=16)'),
    'visualizer': ((dict,), "a dict: visualizer=dict(type='Visualizer')"),
    'visualizer.vis_backends': (LISTS, "a list: vis_backends=[dict(type='LocalVisBackend')]"),
    'visualizer.vis_backends.*': ((dict,), "a dict: dict(type='LocalVisBackend')"),
    'log_processor': ((dict,), "a dict: log_processor=dict(type='LogProcessor', by_epoch=False)"),
    'custom_imports': ((dict,), "a dict: custom_imports=dict(imports=['my_package.my_module'])"),
    'model_wrapper_cfg': ((dict,), "a dict: model_wrapper_cfg=dict(type='MMDistributedDataParallel')"),
    **{f'{split}_dataloader': ((dict,), 'a dict: dict(batch_size=2, num_workers=2, dataset=dict(...))')
       for split in ('train', 'val', 'test')},
    **{f'{split}_evaluator{inner}': ((dict, *(() if inner else LISTS)), "a dict: dict(type='CheckedCocoMetric', ...)")
       for split in ('val', 'test') for inner in ('', '.*')},
}
MAX_SEED = 2**32 - 1  # NumPy's
NEVER_NONE = ('env_cfg', 'env_cfg.mp_cfg', 'env_cfg.dist_cfg', 'randomness', 'default_hooks', 'model.backbone')
COUNTS = {'train_cfg': ('max_iters', 'max_epochs', 'val_interval'),
          'default_hooks.checkpoint': ('interval',), 'default_hooks.logger': ('interval',)}


def check_root(cfg: Config) -> Iterator[Finding]:
    """Look for settings of another kind that every program reads before it checks the rest; see RULES."""
    for place, (kinds, example) in OF_CONFIGS.items():
        for key, value in _at(cfg, place):
            if not isinstance(value, kinds) and (
                    isinstance(value, PLAIN) or value is None and place in NEVER_NONE):
                yield Finding(KIND, key, f'got {_described(value)}, wanted {example}')
    level = cfg.get('log_level')
    if isinstance(level, str) and not isinstance(logging.getLevelName(level), int):
        yield Finding(KIND, 'log_level', f"got the text {level!r}, wanted 'DEBUG', 'INFO', 'WARNING' or 'ERROR'")
    for key, seed in _at(cfg, 'randomness.seed'):
        if seed is not None and not (type(seed) is int and 0 <= seed <= MAX_SEED):
            yield Finding(KIND, key, f'got {_described(seed)}, wanted a whole number from 0 to {MAX_SEED}')
    scope = cfg.get('default_scope')
    if scope is not None and not (isinstance(scope, str) and _is_scope(scope)):
        yield Finding(SCOPE, 'default_scope', f'got {_described(scope)}')


def _is_scope(name: str) -> bool:
    """Whether a registry has a scope, or a package of its name could."""
    if any(name in item.children for item in vars(registry).values() if isinstance(item, registry.Registry)):
        return True
    return name.isidentifier() and name != '__main__' and importlib.util.find_spec(name) is not None


def _at(cfg: Config, place: str) -> Iterator[tuple[str, Any]]:
    """(key, value) of what there is at a place, as in OF_CONFIGS; * are the entries of a list, and of default_hooks."""
    outer, _, last = place.rpartition('.')
    nodes = list(_at(cfg, outer)) if outer else [('', cfg)]
    for key, node in nodes:
        if last != '*':
            if isinstance(node, (dict, Config)) and last in node:
                yield f'{key}.{last}'.lstrip('.'), node[last]
        elif isinstance(node, LISTS) or isinstance(node, dict) and key == 'default_hooks':
            for name, item in node.items() if isinstance(node, dict) else enumerate(node):
                yield f'{key}.{name}', item


def check_counts(cfg: Config) -> Iterator[Finding]:
    """Look for lengths and intervals of a training that are no whole numbers from 1 on; -1 may stand for never.

    An empty name of a checkpoint is told, too.
    """
    if cfg.get('load_from') == '':
        yield Finding(KIND, 'load_from', f"got the text '', wanted {OF_CONFIGS['load_from'][1]}, or None")
    for key, names in COUNTS.items():
        outer, _, inner = key.partition('.')
        settings = cfg.get(outer) or {}
        if inner and isinstance(settings, dict):
            settings = settings.get(inner) or {}
        for name in names if isinstance(settings, dict) else ():
            value, never = settings.get(name), name == 'interval'
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if value is not None and not (whole and (value > 0 or never and value == -1)):
                yield Finding(KIND, f'{key}.{name}', f'got {_described(value)}, wanted a whole number from 1 on')


def check_kinds(cfg: Config, split: str) -> Iterator[Finding]:
    """Look for settings of a split's loader, datasets and metrics that nothing can read as they are; see RULES."""
    loader = cfg.get(f'{split}_dataloader')
    if isinstance(loader, dict):
        yield from _check(f'{split}_dataloader', loader, OF_LOADERS)
    for dataset in datasets_of(cfg, split):
        yield from _check(dataset.key, dataset.settings, OF_DATASETS)
        yield from _check_parts(*dataset)
    for metric in metrics_of(cfg, split):
        yield from _check(metric.key, metric.settings, OF_METRICS)


def check_settings(cfg: Config, *splits: str) -> None:
    """Check what would end a run in a traceback before any other check can speak; see ``check_kinds``.

    Raises:
        PreflightError: naming each setting.
    """
    raise_if_stopped(finding for split in splits for finding in (
        *(check_counts(cfg) if split == 'train' else ()), *check_kinds(cfg, split)))


def _check(key: str, settings: dict, wanted: dict[str, tuple[tuple[type, ...], str]]) -> Iterator[Finding]:
    for name, (kinds, example) in wanted.items():
        value = settings.get(name)
        if isinstance(value, PLAIN) and (not isinstance(value, kinds) or isinstance(value, bool)):
            yield Finding(KIND, f'{key}.{name}', f'got {_described(value)}, wanted {example}')


def _check_parts(key: str, settings: dict, kind: Any) -> Iterator[Finding]:
    """What dicts and lists of a dataset hold."""
    prefixes = settings.get('data_prefix')
    for name, value in prefixes.items() if isinstance(prefixes, dict) else ():
        if value is not None and not isinstance(value, (str, dict)):
            yield Finding(KIND, f'{key}.data_prefix.{name}', f"got {_described(value)}, wanted a folder: '{name}/'")
    steps = settings.get('pipeline')
    for index, step in enumerate(steps if isinstance(steps, LISTS) else ()):
        if isinstance(step, (str, *LISTS)):
            yield Finding(KIND, f'{key}.pipeline.{index}',
                          f"got {_described(step)}, wanted a dict: dict(type='LoadImageFromFile')")
    metainfo = settings.get('metainfo')
    classes = metainfo.get('classes') if isinstance(metainfo, dict) else None
    if isinstance(classes, str):
        if not os.path.isfile(classes):
            yield Finding(TEXT, f'{key}.metainfo.classes', f'got the text {classes!r}, which is no file either')
    elif classes is not None and not isinstance(classes, LISTS):
        yield Finding(KIND, f'{key}.metainfo.classes',
                      f"got {_described(classes)}, wanted a sequence of names: classes=('bolt', 'nut')")
    elif classes is not None and not classes and NAMED & {base.__name__ for base in getattr(kind, '__mro__', ())}:
        yield Finding(EMPTY, f'{key}.metainfo.classes', f'got {classes!r}')


def _described(value: Any) -> str:
    """'the text 'img/'', 'the list [1, 2]', 'None'."""
    if value is None:
        return 'None'
    kind = {str: 'text', int: 'number', float: 'number'}.get(type(value), 'dict' if isinstance(value, dict) else '')
    return f'the {kind or type(value).__name__} {value!r}'
