"""Settings that their own classes refuse: each is built for a trial, where that costs nothing, before the model is."""
import copy
import importlib.util
import linecache
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import (
    HOOKS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
    DefaultScope,
    Registry,
)
from torch.utils.data import DataLoader

from apt_dense.mm.preflight.consumers import is_of_libraries
from apt_dense.mm.preflight.findings import STOP, Finding, Rule
from apt_dense.mm.preflight.parts import OTHER_PACKAGES, class_of, kind_of, leaf_datasets, nested_steps

REFUSED = Rule('setting-refused', STOP, 'a setting that the class for which it is meant refuses',
               'Change it to what the message wants')
PACKAGE = Rule('package-not-installed', STOP, 'a visualizer backend whose package is not installed',
               'Install it, or take the backend out of visualizer.vis_backends')
RULES = (REFUSED, PACKAGE)

OF_LOADERS = ('batch_size', 'num_workers', 'timeout', 'prefetch_factor', 'persistent_workers', 'pin_memory',
              'drop_last', 'multiprocessing_context')
# {backend: the package that it imports when the run begins}
OF_BACKENDS = {
    'WandbVisBackend': 'wandb', 'MLflowVisBackend': 'mlflow', 'ClearMLVisBackend': 'clearml',
    'NeptuneVisBackend': 'neptune', 'DVCLiveVisBackend': 'dvclive', 'AimVisBackend': 'aim',
    'TensorboardVisBackend': 'tensorboard'}
OF_WRAPPERS = ('accumulative_counts', 'clip_grad')
OF_GPUS = ('fused', 'foreach', 'capturable')  # which older torch refuses for parameters that are on none


def check_building(cfg: Config, splits: Sequence[str]) -> Iterator[Finding]:
    """Build transforms, and for a training optimiser, schedules and hooks, of settings that are of the right kind.

    Only classes of the libraries and of this project are built: a user's may do more than keep its settings, and the
    traceback of its errors is of use.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        yield from _check_packages(cfg)
        for split in splits:
            loader = cfg.get(f'{split}_dataloader') or {}
            settings = {name: loader[name] for name in OF_LOADERS if name in loader}
            yield from _tried(f'{split}_dataloader', settings, lambda given: DataLoader([0], **given))
            for leaf, wrappers in leaf_datasets(cfg, split):
                for key, dataset in (*wrappers, leaf):
                    yield from _try_steps(f'{key}.pipeline', dataset.get('pipeline'), cfg)
        if 'train' in splits:
            yield from _try_optimisation(cfg)
            yield from _try_hooks(cfg)


def _check_packages(cfg: Config) -> Iterator[Finding]:
    for index, backend in enumerate((cfg.get('visualizer') or {}).get('vis_backends') or ()):
        package = OF_BACKENDS.get(kind_of(backend))
        spec = importlib.util.find_spec(package) if package else None
        if package and (spec is None or spec.origin is None):  # a folder of that name, which WandB makes, is none
            yield Finding(PACKAGE, f'visualizer.vis_backends.{index}.type',
                          f'{kind_of(backend)} needs {package}: pip install {package}')


def _try_steps(key: str, node: Any, cfg: Config) -> Iterator[Finding]:
    """Build the transforms at and below a node; one that holds others only where these can be built.

    What stands in a transform of the user, or of another package, is theirs: it may be part of a setting, or a
    transform of that package which has the same name.
    """
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _try_steps(f'{key}.{index}', item, cfg)
    elif isinstance(node, dict) and _is_tried(node, TRANSFORMS, cfg) and kind_of(node) not in OTHER_PACKAGES:
        inner = [finding for name, item in node.items() if isinstance(item, (list, tuple, dict))
                 for finding in _try_steps(f'{key}.{name}', item, cfg)]
        yield from inner
        others = any(not _is_tried(step, TRANSFORMS, cfg) for _, step in nested_steps(node, key))
        if not (inner or others or 'tokenizer_name' in node):  # which would be downloaded
            yield from _tried(key, node, TRANSFORMS.build)


def _try_optimisation(cfg: Config) -> Iterator[Finding]:
    settings = cfg.get('optim_wrapper') or {}
    several = {f'optim_wrapper.{name}': item for name, item in settings.items()
               if isinstance(item, dict) and 'optimizer' in item}  # of an OptimWrapperDict
    for key, item in several.items() or [('optim_wrapper', settings)]:
        kind = class_of(item, OPTIM_WRAPPERS, cfg) if item.get('type') else OptimWrapper
        if kind is None or is_of_libraries(kind):
            given = {name: item[name] for name in OF_WRAPPERS if name in item}
            yield from _tried(key, given, _step)
        optimizer = item.get('optimizer')
        if _is_tried(optimizer, OPTIMIZERS, cfg):
            found = list(_tried(f'{key}.optimizer', optimizer, _optimizer))
            yield from found
            if not found and not several:
                yield from _try_schedules(cfg, optimizer)


def _try_schedules(cfg: Config, optimizer: dict) -> Iterator[Finding]:
    schedules = cfg.get('param_scheduler') or ()
    known = _optimizer(copy.deepcopy(optimizer)).param_groups[0]
    for index, schedule in enumerate(schedules if isinstance(schedules, (list, tuple)) else [schedules]):
        key = f'param_scheduler.{index}' if isinstance(schedules, (list, tuple)) else 'param_scheduler'
        # What a constructor of the user puts into the groups is not there.
        if _is_tried(schedule, PARAM_SCHEDULERS, cfg) and schedule.get('param_name', 'lr') in known:
            yield from _tried(key, schedule, lambda given: PARAM_SCHEDULERS.build(
                {name: value for name, value in given.items() if name != 'convert_to_iter_based'},
                default_args=dict(optimizer=_optimizer(copy.deepcopy(optimizer)))))


def _optimizer(settings: dict) -> torch.optim.Optimizer:
    kept = {name: value for name, value in settings.items() if name not in OF_GPUS}
    return OPTIMIZERS.build(dict(kept, params=[torch.nn.Parameter(torch.zeros(1, 1))]))


def _step(settings: dict) -> None:
    """One step of an optimiser's wrapper, in which gradients are clipped."""
    wrapper = OptimWrapper(_optimizer(dict(type='SGD', lr=0.0)), **settings)
    parameter, = wrapper.optimizer.param_groups[0]['params']
    wrapper.backward(parameter.sum())
    wrapper.step()


def _try_hooks(cfg: Config) -> Iterator[Finding]:
    hooks = [(f'default_hooks.{name}', hook) for name, hook in (cfg.get('default_hooks') or {}).items()]
    hooks += [(f'custom_hooks.{index}', hook) for index, hook in enumerate(cfg.get('custom_hooks') or ())]
    for key, hook in hooks:
        if _is_tried(hook, HOOKS, cfg):
            yield from _tried(key, hook, lambda given: HOOKS.build(
                {name: value for name, value in given.items() if name != 'priority'}))


def _is_tried(settings: Any, registry: Registry, cfg: Config) -> bool:
    """Whether a part is built here: of a class that is known, and not the user's own."""
    kind = class_of(settings, registry, cfg) if isinstance(settings, dict) and settings.get('type') else None
    if registry is OPTIMIZERS:  # mmengine's own wants processes
        return kind is not None and kind.__module__.partition('.')[0] == 'torch'
    return is_of_libraries(kind)


def _tried(key: str, settings: dict, build: Callable[[dict], Any]) -> Iterator[Finding]:
    """Build a part of a copy of its settings, from which some classes take entries out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            build(copy.deepcopy(settings))
    except Exception as error:  # theirs are of any class: an assertion, a wrong type, a missing key
        if 'get_current_instance' in str(error):  # the runner's visualizer is not there yet
            return
        yield Finding(REFUSED, key, f'{kind_of(settings) or "got"} {_given(settings)}: {_reason(error)}')


def _given(settings: dict) -> str:
    """'(prob=50)', shortened."""
    text = ', '.join(f'{name}={value!r}' for name, value in settings.items() if name not in ('type', 'transforms'))
    return f'({text if len(text) < 200 else f"{text[:200]}..."})'


def _reason(error: Exception) -> str:
    """What an error says; the line of code that has raised it if it says nothing."""
    text = ' '.join(str(error).split()).rstrip('.')
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    line = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno).strip()
    return f'{type(error).__name__}: {text or line}'
