"""Who reads a setting: the runner, the class that a ``type`` names, or a library's code."""
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mmengine import registry
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from mmengine.runner import (
    EpochBasedTrainLoop,
    FlexibleRunner,
    IterBasedTrainLoop,
    Runner,
    TestLoop,
    ValLoop,
    set_random_seed,
)
from torch import nn
from torch.utils.data import DataLoader

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
        kinds = list(_classes(node['type'], cfg))
        found = [parameters_of(kind) for kind in kinds]
        return set().union(*found) | BUILDERS_KEYS if kinds and None not in found else None
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
        return name in known
    if node.get('type') or _is_below_own_class(key, cfg):
        return True
    return _is_mentioned(name, (*_own_modules(cfg), *(_libraries() if key else ())))


def _is_below_own_class(key: str, cfg: Config) -> bool:
    """True if a dict goes to a class that is none of the libraries'."""
    node: Any = cfg
    for part in key.split('.') if key else ():
        node = node[int(part)] if isinstance(node, (list, tuple)) else node[part]
        kinds = _classes(node['type'], cfg) if isinstance(node, dict) and node.get('type') else ()
        if any(kind.__module__.partition('.')[0] not in LIBRARIES for kind in kinds):
            return True
    return False


def _classes(kind: str | type, cfg: Config) -> Iterator[Any]:
    """What a type may name: a name may be registered for transforms and for models."""
    if not isinstance(kind, str):
        yield kind
        return
    for root in vars(registry).values():
        if isinstance(root, Registry):
            found = root.children.get(cfg.get('default_scope'), root).get(kind)
            if found is not None:
                yield found


def parameters_of(kind: Any) -> set[str] | None:
    """Names that may be given to a class or function; None for any.

    Those of its parents count as long as each class hands on what it does not know.
    """
    names = set()
    chain = [base.__init__ for base in kind.__mro__ if '__init__' in vars(base)] if inspect.isclass(kind) else [kind]
    for init in chain:
        if init in (object.__init__, nn.Module.__init__):
            return names if init is nn.Module.__init__ else None
        parameters = inspect.signature(init).parameters.values()
        names |= {item.name for item in parameters if item.kind in (item.KEYWORD_ONLY, item.POSITIONAL_OR_KEYWORD)}
        if not any(item.kind is item.VAR_KEYWORD for item in parameters):
            return names - {'self'}
    return None


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
