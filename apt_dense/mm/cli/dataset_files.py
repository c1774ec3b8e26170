"""Whether the files that a config names are there."""
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from apt_dense.mm.cli.start import described
from apt_dense.mm.errors import LaunchError


def check_dataset_files(cfg: Config, *splits: str) -> None:
    """Check that annotation files and image directories exist, before the model is built.

    Looks at every dataset of the splits' data loaders, inside wrappers too, and at the evaluators' annotation files.
    Paths with a scheme and datasets with another backend than 'local' are not on this machine and are passed over.

    Args:
        splits: of 'train', 'val', 'test'.

    Raises:
        LaunchError: names every missing path with its key in the config.
    """
    missing: dict[str, list[str]] = {}
    for split in splits:
        evaluator = f'{split}_evaluator'
        for key, path in (*_dataset_paths(cfg.get(f'{split}_dataloader'), f'{split}_dataloader'),
                          *_evaluator_paths(cfg.get(evaluator), evaluator)):
            if '://' in path or os.path.exists(path):
                continue
            # A missing root comes first and explains all paths that are joined to it; an evaluator's is not joined.
            above = next((root for root in missing if Path(root) in (Path(path), *Path(path).parents)), path)
            if Path(above) == Path(path) or key.startswith(evaluator) or key.endswith('.data_root'):
                missing.setdefault(above, []).append(key)
    if missing:
        listed = ''.join(f'\n  {described(path)}: {", ".join(keys)}' for path, keys in missing.items())
        raise LaunchError(f'dataset files are missing:{listed}\nPut or link them there (ln -s /path/to/data data), or '
                          f'say for each key where yours are: --cfg-options {next(iter(missing.values()))[0]}=/path')


def _dataset_paths(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """(key, path) of each dataset at or below a data loader or dataset, joined as mmengine's BaseDataset does."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _dataset_paths(item, f'{key}.{index}')
    if not isinstance(node, dict):
        return
    for name in ('dataset', 'datasets'):
        yield from _dataset_paths(node.get(name), f'{key}.{name}')
    if not _is_local(node):
        return
    root = node.get('data_root') or ''
    if root:
        yield f'{key}.data_root', root
    prefixes = node.get('data_prefix') or {}
    paths = {'ann_file': node.get('ann_file'), **{f'data_prefix.{name}': path for name, path in prefixes.items()}}
    for name, path in paths.items():
        if path:
            yield f'{key}.{name}', path if '://' in path else os.path.join(root, path)


def _is_local(node: dict) -> bool:
    return (node.get('backend_args') or {}).get('backend', 'local') == 'local'


def _evaluator_paths(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """(key, path) of each annotation file in an evaluator."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _evaluator_paths(item, f'{key}.{index}')
    elif isinstance(node, dict):
        yield from _evaluator_paths(node.get('metrics'), f'{key}.metrics')
        if node.get('ann_file') and _is_local(node):
            yield f'{key}.ann_file', node['ann_file']
