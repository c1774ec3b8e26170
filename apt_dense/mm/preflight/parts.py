"""The parts of a config that checks look at, each with its key, inside wrappers too."""
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry

from apt_dense.mm.preflight import datasets
from apt_dense.mm.preflight.consumers import OPEN_DICTS, root_keys
from apt_dense.mm.preflight.datasets import SPLITS
from apt_dense.mm.preflight.registrations import registered

Part = tuple[str, dict]  # key, settings
TRAINING_ONLY = ('optim_wrapper', 'param_scheduler', 'auto_scale_lr')

OTHER_PACKAGES = ('Albu',)  # types whose settings are another package's


def kind_of(node: Any) -> str:
    """A node's type without its scope: 'CocoDataset' for 'mmdet.CocoDataset'; '' without one."""
    kind = node.get('type') or '' if isinstance(node, dict) else ''
    return (kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))).rpartition('.')[2]


def class_of(node: dict, registry: Registry, cfg: Config) -> type | None:
    """The class that a node's ``type`` names; None if it is registered nowhere."""
    kind = node.get('type')
    scope = node.get('_scope_') or cfg.get('default_scope')
    found = registered(kind, registry, scope) if isinstance(kind, str) else kind
    return found if isinstance(found, type) else None


def settings_of(cfg: Config, splits: Sequence[str]) -> Iterator[Part]:
    """Every dict below the keys that are read when a config is run for some splits.

    Dicts whose entries are names of other things, or go on to other packages, are left out.
    """
    for name in sorted(root_keys() & set(cfg)):
        split = next((split for split in SPLITS if name.startswith(f'{split}_')), None)
        if (split is None or split in splits) and (name not in TRAINING_ONLY or 'train' in splits):
            yield from _dicts(cfg[name], name)


def _dicts(node: Any, key: str) -> Iterator[Part]:
    if OPEN_DICTS.fullmatch(key.rpartition('.')[2]):
        return
    if isinstance(node, dict):
        yield key, node
        if kind_of(node) in OTHER_PACKAGES:
            return
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for name, item in items:
        yield from _dicts(item, f'{key}.{name}')


def leaf_datasets(cfg: Config, split: str) -> Iterator[tuple[Part, list[Part]]]:
    """The datasets of a split that read files: ((key, settings), their wrappers, the outermost first)."""
    loader = cfg.get(f'{split}_dataloader')
    if isinstance(loader, dict):
        yield from _leaves(loader.get('dataset'), f'{split}_dataloader.dataset', [])


def _leaves(node: Any, key: str, wrappers: list[Part]) -> Iterator[tuple[Part, list[Part]]]:
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _leaves(item, f'{key}.{index}', wrappers)
    elif isinstance(node, dict):
        inner = [name for name in ('dataset', 'datasets') if node.get(name)]
        for name in inner:
            yield from _leaves(node[name], f'{key}.{name}', [*wrappers, (key, node)])
        if not inner:
            yield (key, node), wrappers


def steps_of(dataset: Part) -> Iterator[Part]:
    """A dataset's transforms, inside others too."""
    key, settings = dataset
    yield from nested_steps(settings.get('pipeline'), f'{key}.pipeline')


def nested_steps(node: Any, key: str) -> Iterator[Part]:
    """The transforms at or below a node of a pipeline."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from nested_steps(item, f'{key}.{index}')
    elif isinstance(node, dict):
        if node.get('type'):
            yield key, node
        for name, item in node.items():
            if isinstance(item, (list, tuple, dict)):
                yield from nested_steps(item, f'{key}.{name}')


def metrics_of(cfg: Config, split: str) -> Iterator[Part]:
    """The metrics of a split's evaluator."""
    yield from ((key, settings) for key, settings, _ in datasets.metrics_of(cfg, split))


def listed(names: Any, limit: int = 5) -> str:
    """Names for a message: 'a, b, c and 7 more'."""
    names = [str(name) for name in names]
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more
