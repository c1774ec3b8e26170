"""Types that no registry has: mistyped, or of a module that nothing imports."""
import importlib.util
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    EVALUATOR,
    FUNCTIONS,
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    METRICS,
    MODEL_WRAPPERS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
    VISBACKENDS,
    VISUALIZERS,
    Registry,
)

from apt_dense.mm.preflight.consumers import is_named_above
from apt_dense.mm.preflight.findings import STOP, WARN, Finding, Rule
from apt_dense.mm.preflight.parts import settings_of
from apt_dense.mm.preflight.registrations import is_known, nearest, registered, scope_at

UNREGISTERED = Rule(
    'type-not-registered', STOP, 'a type that the registry of its place does not have',
    "Correct its name, or import its module: custom_imports=dict(imports=['my_package.my_module'])")
UNKNOWN = Rule(
    'type-unknown', WARN, 'a type that no registry has, at a place of which is not known whether it is built',
    "Correct its name, or import its module: custom_imports=dict(imports=['my_package.my_module'])")
RULES = (UNREGISTERED, UNKNOWN)

# Who builds what stands at a key; the first that matches.
PLACES: tuple[tuple[str, Registry], ...] = (
    (r'(tta_)?model(\..+)?\.(backbone|neck|data_preprocessor|segmentor|\w+_head)(\.\d+)?', MODELS),
    (r'(tta_)?model(\.module)?', MODELS),
    (r'(\w+_dataloader\..+\.|tta_)pipeline\.\d+((\.transforms)?\.\d+)*', TRANSFORMS),
    (r'\w+_dataloader\.dataset((\.dataset|\.datasets)?(\.\d+)?)*', DATASETS),
    (r'\w+_dataloader\.(batch_)?sampler', DATA_SAMPLERS),
    (r'\w+_dataloader\.(collate_fn|worker_init_fn)', FUNCTIONS),
    (r'\w+_evaluator(\.metrics)?(\.\d+)?', METRICS),
    (r'(train|val|test)_cfg', LOOPS),
    (r'(default|custom)_hooks\.\w+', HOOKS),
    (r'optim_wrapper(\.\w+)?\.optimizer', OPTIMIZERS),
    (r'optim_wrapper', OPTIM_WRAPPERS),
    (r'param_scheduler(\.\w+)*', PARAM_SCHEDULERS),
    (r'visualizer', VISUALIZERS),
    (r'visualizer\.vis_backends\.\d+', VISBACKENDS),
    (r'log_processor', LOG_PROCESSORS),
    (r'model_wrapper_cfg', MODEL_WRAPPERS),
)


def check_types(cfg: Config, splits: Sequence[str]) -> Iterator[Finding]:
    """Look up every type of a config that is used for some splits; see RULES."""
    for key, node in settings_of(cfg, splits):
        kind = node.get('type')
        if isinstance(kind, str) and kind:
            root = _builder(key, node)
            if root or not is_named_above(key, kind, cfg):
                yield from _check_type(f'{key}.type', kind, root, scope_at(key, cfg))
        constructor = node.get('constructor') if key == 'optim_wrapper' else None
        if isinstance(constructor, str):
            yield from _check_type(f'{key}.constructor', constructor, OPTIM_WRAPPER_CONSTRUCTORS, scope_at(key, cfg))


def _builder(key: str, node: dict) -> Registry | None:
    """The registry that builds what stands at a key; None if that is not known."""
    if key.endswith('_evaluator') and 'metrics' in node:
        return EVALUATOR
    return next((root for place, root in PLACES if re.fullmatch(place, key)), None)


def _check_type(key: str, kind: str, root: Registry | None, scope: Any) -> Iterator[Finding]:
    found = registered(kind, root, scope) is not None if root else is_known(kind, scope)
    if found:
        return
    rule = UNREGISTERED if root and not key.startswith('tta_') else UNKNOWN
    package = kind.partition('.')[0]
    if package != kind and importlib.util.find_spec(package) is None:
        yield Finding(rule, key, f'{kind!r}, and {package} is not installed')
        return
    near = nearest(kind, root, scope)
    where = f'in the registry of {root.name}s of {scope or "mmengine"}' if root else 'registered'
    yield Finding(rule, key, f'{kind!r} is not {where}' + (f'; nearest: {", ".join(near)}' if near else ''))
