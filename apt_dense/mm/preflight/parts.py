"""The parts of a config that checks look at, each with its key, inside wrappers too."""
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry

from apt_dense.mm.preflight import datasets

Part = tuple[str, dict]  # key, settings


def kind_of(node: Any) -> str:
    """A node's type without its scope: 'CocoDataset' for 'mmdet.CocoDataset'; '' without one."""
    kind = node.get('type') or '' if isinstance(node, dict) else ''
    return (kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))).rpartition('.')[2]


def class_of(node: dict, registry: Registry, cfg: Config) -> type | None:
    """The class that a node's ``type`` names; None if it is registered nowhere."""
    kind = node.get('type')
    if not isinstance(kind, str):
        return kind if isinstance(kind, type) else None
    with registry.switch_scope_and_registry(cfg.get('default_scope')) as scoped:
        found = scoped.get(kind)
    return found if isinstance(found, type) else None


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
