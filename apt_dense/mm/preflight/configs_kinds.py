"""Settings of datasets and metrics that are of another kind than is wanted: a text for a dict, a list for a text."""
import os
from collections.abc import Iterator
from numbers import Integral
from typing import Any

from mmengine.config import Config

from apt_dense.mm.preflight.datasets import datasets_of, metrics_of
from apt_dense.mm.preflight.findings import STOP, Finding, Rule, raise_if_stopped

KIND = Rule(
    'setting-of-another-kind', STOP, 'a text where a dict is wanted, a number where a text is, and the like',
    'Write it in that form')
TEXT = Rule(
    'classes-are-a-text', STOP, 'metainfo.classes is a text, whose letters would be the classes',
    "Write a tuple: classes=('bolt',) with the comma, or name a file that lists one class a line")
EMPTY = Rule(
    'classes-are-empty', STOP, 'metainfo.classes without a name: no object would be left',
    "Name the classes: metainfo=dict(classes=('bolt', 'nut')), or leave metainfo out for those of the dataset's type")
RULES = (KIND, TEXT, EMPTY)

LISTS = (list, tuple)
NAMED = {'CocoDataset', 'BaseSegDataset'}  # whose classes choose what is kept
# {setting: (kinds, what is wanted)}; None is left to the classes.
OF_DATASETS: dict[str, tuple[tuple[type, ...], str]] = {
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
OF_LOADERS: dict[str, tuple[tuple[type, ...], str]] = {
    'batch_size': ((Integral,), 'a whole number: batch_size=2'),
    'num_workers': ((Integral,), 'a whole number: num_workers=2'),
    'dataset': ((dict, *LISTS), "a dict: dataset=dict(type='CheckedCocoDataset', ...)"),
}


COUNTS = {'train_cfg': ('max_iters', 'max_epochs', 'val_interval'),
          'default_hooks.checkpoint': ('interval',), 'default_hooks.logger': ('interval',)}


def check_counts(cfg: Config) -> Iterator[Finding]:
    """Look for lengths and intervals of a training that are no whole numbers from 1 on; -1 may stand for never."""
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
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
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
    """'the text 'img/'', 'the list [1, 2]'."""
    kind = {str: 'text', int: 'number', float: 'number'}.get(type(value), 'dict' if isinstance(value, dict) else '')
    return f'the {kind or type(value).__name__} {value!r}'
