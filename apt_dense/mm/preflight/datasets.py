"""Finding the datasets and metrics of a config, without building them."""
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, Registry
from mmengine.utils import is_abs

from apt_dense.mm.preflight.registrations import registered

SPLITS = ('train', 'val', 'test')


class Source(NamedTuple):
    """A dataset or a metric as a config has it.

    Attributes:
        key: where it stands: 'train_dataloader.dataset.datasets.0'.
        settings: its settings.
        kind: its class; None if no registry has it.
    """
    key: str
    settings: dict
    kind: type | None


def datasets_of(cfg: Config, split: str) -> Iterator[Source]:
    """The datasets of a split, inside wrappers and lists too."""
    key = f'{split}_dataloader'
    for name, node in _leaves(cfg.get(key), key):
        yield Source(name, node, _kind(cfg, DATASETS, node))


def metrics_of(cfg: Config, split: str) -> Iterator[Source]:
    """The metrics of a split's evaluator."""
    key = f'{split}_evaluator'
    for name, node in _metrics(cfg.get(key), key):
        yield Source(name, node, _kind(cfg, METRICS, node))


def is_remote(settings: dict, *paths: str) -> bool:
    """True if files are not on this machine: another backend, or a scheme."""
    backend_args = settings.get('backend_args')
    backend = backend_args.get('backend', 'local') if isinstance(backend_args, dict) else 'local'
    return backend != 'local' or any('://' in path for path in (settings.get('data_root') or '', *paths))


def joined(settings: dict, path: str) -> str:
    """A dataset's path as mmengine's BaseDataset joins it with data_root."""
    root = settings.get('data_root') or ''
    return path if is_abs(path) or not root else os.path.join(root, path)


def annotation_file(source: Source) -> str:
    """The annotation file of a dataset; '' if it has none."""
    return joined(source.settings, source.settings.get('ann_file') or '') if source.settings.get('ann_file') else ''


def paths_of(cfg: Config, split: str) -> Iterator[str]:
    """Files and folders on this machine that a split's datasets and metrics read."""
    for source in datasets_of(cfg, split):
        prefixes, root = source.settings.get('data_prefix'), source.settings.get('data_root')
        if root is not None and not isinstance(root, str):  # configs_kinds tells
            continue
        paths = (source.settings.get('ann_file'), *(prefixes.values() if isinstance(prefixes, dict) else ()))
        for path in (joined(source.settings, path) for path in paths if isinstance(path, str) and path):
            if not is_remote(source.settings, path):
                yield path
    for source in metrics_of(cfg, split):
        path = source.settings.get('ann_file')
        if isinstance(path, str) and path and not is_remote(source.settings, path):
            yield path


def steps_of(node: Any) -> Iterator[dict]:
    """The transforms of a pipeline, inside others too."""
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from steps_of(item)
    elif isinstance(node, dict):
        yield node
        yield from steps_of(node.get('transforms'))


def _leaves(node: Any, key: str) -> Iterator[tuple[str, dict]]:
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _leaves(item, f'{key}.{index}')
    elif isinstance(node, dict):
        inner = [name for name in ('dataset', 'datasets') if node.get(name)]
        for name in inner:
            yield from _leaves(node[name], f'{key}.{name}')
        if not inner and node.get('type') is not None:
            yield key, node


def _metrics(node: Any, key: str) -> Iterator[tuple[str, dict]]:
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _metrics(item, f'{key}.{index}')
    elif isinstance(node, dict):
        if node.get('metrics'):
            yield from _metrics(node['metrics'], f'{key}.metrics')
        elif node.get('type') is not None:
            yield key, node


def _kind(cfg: Config, root: Registry, node: dict) -> type | None:
    kind = node['type']
    scope = node.get('_scope_') or cfg.get('default_scope')
    return registered(kind, root, scope) if isinstance(kind, str) else kind
