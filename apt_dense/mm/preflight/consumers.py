"""Who reads a setting: the runner, the class that a ``type`` names, or a library's code."""
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.runner import (
    EpochBasedTrainLoop,
    FlexibleRunner,
    IterBasedTrainLoop,
    Runner,
    TestLoop,
    ValLoop,
    set_random_seed,
)
from torch.utils.data import DataLoader

from apt_dense.mm.preflight.keywords import default_of, handed_to, parameters_of
from apt_dense.mm.preflight.registrations import all_registered, scope_at

LIBRARIES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'apt_dense')
# Top-level keys that are read from the whole config, by mmengine's runner, this project's tools or mmengine's Config.
ROOT_KEYS = frozenset((
    'model_wrapper_cfg', 'find_unused_parameters', 'sync_bn', 'compile', 'efficient_conv_bn_eval', 'runner_type',
    'strategy', 'custom_imports', 'tta_model', 'tta_pipeline', 'exact_resume', 'requires_load_from',
    'float32_matmul_precision'))
# Keys that are taken out before a class is built, wherever its type stands.
BUILDERS_KEYS = frozenset((
    'type', '_scope_', '_delete_', 'priority', 'requires_grad', 'override', 'constructor', 'paramwise_cfg',
    'convert_to_iter_based'))
LOADER_KEYS = frozenset((
    'sampler', 'batch_sampler', 'num_batch_per_epoch', 'worker_init_fn', 'collate_fn', 'disable_subprocess_warning'))
# Dicts whose entries go on to other packages, or whose keys are names of parameters.
OPEN_DICTS = re.compile(r'.*kwargs|custom_keys|backend_args|file_client_args|dist_cfg|define_metric_cfg|strategy|meta')
SUGGESTED = {'metainfo': {'classes', 'palette'}}  # of dicts that may have any key


def root_keys() -> set[str]:
    """The top-level keys of a config that are read when it is run."""
    runners = parameters_of(Runner) | parameters_of(FlexibleRunner)
    return (runners | ROOT_KEYS) - {'cfg'}


def readable_keys(key: str, node: Any, cfg: Config) -> set[str] | None:
    """The keys that a dict of the config may have.

    Args:
        key: where it stands: 'model.backbone'; '' for the config itself.
        node: the dict.

    Returns:
        None if that cannot be said: its type is registered nowhere, or takes any.
    """
    if not key:
        return root_keys()
    if node.get('type'):
        found = [_taken(kind, node, cfg) for kind in kinds_at(key, node, cfg)]
        return set().union(*found) | BUILDERS_KEYS if found and None not in found else None
    settings = {
        'optim_wrapper': [OptimWrapper], 'train_cfg': [EpochBasedTrainLoop, IterBasedTrainLoop],
        'val_cfg': [ValLoop], 'test_cfg': [TestLoop], 'randomness': [set_random_seed],
        'train_dataloader': [DataLoader], 'val_dataloader': [DataLoader], 'test_dataloader': [DataLoader]}
    names = {
        'auto_scale_lr': {'enable', 'base_batch_size'},
        'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
        'optim_wrapper.clip_grad': {'type', 'max_norm', 'norm_type', 'error_if_nonfinite', 'foreach', 'clip_value'}}
    if key in settings:
        more = {'by_epoch'} if key == 'train_cfg' else LOADER_KEYS if key.endswith('dataloader') else set()
        return set().union(*map(parameters_of, settings[key])) | BUILDERS_KEYS | more
    return names.get(key)


def is_read(key: str, name: str, node: Any, cfg: Config) -> bool:
    """Whether something reads ``name`` in the dict at ``key``.

    Where no signature tells, a name that the libraries' code has nowhere is read by none.
    """
    if name in ('_delete_', '_scope_') or any(OPEN_DICTS.fullmatch(part) for part in key.split('.')):
        return True
    if key == 'default_hooks':  # any name, of a hook that has a type
        return bool(node[name].get('type')) if isinstance(node.get(name), dict) else node.get(name) is None
    known = readable_keys(key, node, cfg)
    if known is not None and (name in known or key):
        return name in known or is_named_above(key, name, cfg)
    if node.get('type') or is_below_own_class(key, cfg):
        return True
    return _is_mentioned(name, (*_own_modules(cfg), *(_libraries() if key else ())))


def is_of_libraries(kind: Any) -> bool:
    """Whether a class is of the libraries or of this project, not of the user."""
    return kind is not None and kind.__module__.partition('.')[0] in LIBRARIES


def is_below_own_class(key: str, cfg: Config) -> bool:
    """True if a dict goes to a class that is none of the libraries'."""
    node: Any = cfg
    for part in key.split('.') if key else ():
        node = node[int(part)] if isinstance(node, (list, tuple)) else node[part]
        kinds = kinds_at('', node, cfg) if isinstance(node, dict) and node.get('type') else ()
        if any(kind.__module__.partition('.')[0] not in LIBRARIES for kind in kinds):
            return True
    return False


def is_named_above(key: str, text: str, cfg: Config) -> bool:
    """Whether the code of the class next above a dict has a text: it may take a key out, or know a type by its name."""
    node, kinds = cfg, []
    for part in key.split('.')[:-1]:
        node = node[int(part)] if isinstance(node, (list, tuple)) else node[part]
        kinds = kinds_at('', node, cfg) if isinstance(node, dict) and node.get('type') else kinds
    return any(_is_in_modules(text, kind) for kind in kinds)


@cache
def _is_in_modules(text: str, kind: Any) -> bool:
    """Whether a file of a class, or of its parents, has a text in quotes."""
    files = {getattr(sys.modules.get(base.__module__), '__file__', None) for base in getattr(kind, '__mro__', ())}
    sources = (Path(file).read_text(encoding='utf-8', errors='replace') for file in files if file)
    return any(f"'{text}'" in source or f'"{text}"' in source for source in sources)


def kinds_at(key: str, node: dict, cfg: Config) -> list[Any]:
    """What the type at a key may be: a name may be registered for transforms and for models."""
    kind = node['type']
    return list(all_registered(kind, scope_at(key, cfg))) if isinstance(kind, str) else [kind]


def _taken(kind: Any, node: dict, cfg: Config) -> frozenset[str] | None:
    """Names that a class takes, with those of the type to which it hands what it does not know; None for any."""
    names = parameters_of(kind)
    for argument in handed_to(kind):
        inner = node.get(argument) or default_of(kind, argument)
        more = _taken_by_type(inner, cfg)
        names = None if names is None or more is None else names | more
    return names


def _taken_by_type(kind: Any, cfg: Config) -> frozenset[str] | None:
    if kind is None:
        return None
    found = [_taken(inner, {}, cfg) for inner in kinds_at('', dict(type=kind), cfg)]
    return frozenset().union(*found) if found and None not in found else None


def _libraries() -> tuple[str, ...]:
    """Folders of the packages that read configs, of those that are loaded."""
    return tuple(str(Path(sys.modules[name].__file__).parent) for name in LIBRARIES if name in sys.modules)


def _own_modules(cfg: Config) -> Iterator[str]:
    """Files of the modules that the config imports itself, and folders of the packages that they are in."""
    imports = (cfg.get('custom_imports') or {}).get('imports') or ()
    for name in [imports] if isinstance(imports, str) else imports:
        package = name.partition('.')[0]
        path = getattr(sys.modules.get(package), '__file__', None)
        if package not in LIBRARIES:
            yield from getattr(sys.modules.get(package), '__path__', ()) or ([path] if path else ())


@cache
def _is_mentioned(name: str, places: tuple[str, ...]) -> bool:
    """Whether Python files have a name as a text, an attribute or an argument."""
    pattern = re.compile(rf"""['"]{re.escape(name)}['"]|\.{re.escape(name)}\b|\b{re.escape(name)}\s*=""")
    files = (path for place in map(Path, places) for path in ([place] if place.is_file() else place.rglob('*.py')))
    return any(pattern.search(path.read_text(encoding='utf-8', errors='replace')) for path in files)
