"""Settings that their own classes refuse: each is built for a trial, where that costs nothing, before the model is."""
import importlib.util
import linecache
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, OPTIMIZERS, PARAM_SCHEDULERS, TRANSFORMS, DefaultScope, Registry
from torch.utils.data import DataLoader

from apt_dense.mm.preflight.consumers import LIBRARIES
from apt_dense.mm.preflight.findings import STOP, Finding, Rule
from apt_dense.mm.preflight.parts import Part, class_of, kind_of, leaf_datasets, steps_of

REFUSED = Rule('setting-refused', STOP, 'a setting that the class for which it is meant refuses',
               'Change it to what the message wants')
PACKAGE = Rule('package-not-installed', STOP, 'a visualizer backend whose package is not installed',
               'Install it, or take the backend out of visualizer.vis_backends')
RULES = (REFUSED, PACKAGE)

OF_LOADERS = ('batch_size', 'num_workers', 'timeout', 'prefetch_factor', 'persistent_workers', 'pin_memory',
              'drop_last', 'multiprocessing_context')
# {backend: packages, one of which it imports when the run begins}
OF_BACKENDS = {
    'WandbVisBackend': ('wandb',), 'MLflowVisBackend': ('mlflow',), 'ClearMLVisBackend': ('clearml',),
    'NeptuneVisBackend': ('neptune',), 'DVCLiveVisBackend': ('dvclive',), 'AimVisBackend': ('aim',),
    'TensorboardVisBackend': ('tensorboard', 'tensorboardX')}
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
            yield from _tried(f'{split}_dataloader', settings, lambda settings=settings: DataLoader([0], **settings))
            for leaf, wrappers in leaf_datasets(cfg, split):
                for part in (*wrappers, leaf):
                    yield from _try_steps(part, cfg)
        if 'train' in splits:
            yield from _try_optimisation(cfg)
            yield from _try_hooks(cfg)


def _check_packages(cfg: Config) -> Iterator[Finding]:
    for index, backend in enumerate((cfg.get('visualizer') or {}).get('vis_backends') or ()):
        packages = OF_BACKENDS.get(kind_of(backend), ())
        if packages and not any(map(importlib.util.find_spec, packages)):
            yield Finding(PACKAGE, f'visualizer.vis_backends.{index}.type',
                          f'{kind_of(backend)} needs {" or ".join(packages)}: pip install {packages[0]}')


def _try_steps(dataset: Part, cfg: Config) -> Iterator[Finding]:
    refused: list[str] = []  # a step's outer ones would fail on it again
    for key, step in sorted(steps_of(dataset), key=lambda part: -part[0].count('.')):
        if _is_tried(step, TRANSFORMS, cfg) and not any(inner.startswith(f'{key}.') for inner in refused):
            found = list(_tried(key, step, lambda step=step: TRANSFORMS.build(step)))
            refused += [key for _ in found]
            yield from found


def _try_optimisation(cfg: Config) -> Iterator[Finding]:
    settings = cfg.get('optim_wrapper') or {}
    optimizer = settings.get('optimizer')
    wrapper = {name: settings[name] for name in OF_WRAPPERS if name in settings}
    yield from _tried('optim_wrapper', wrapper,
                      lambda: _step(OptimWrapper(_optimizer(dict(type='SGD', lr=0.0)), **wrapper)))
    if not _is_tried(optimizer, OPTIMIZERS, cfg):
        return
    found = list(_tried('optim_wrapper.optimizer', optimizer, lambda: _optimizer(optimizer)))
    yield from found
    schedules = cfg.get('param_scheduler') or ()
    for index, schedule in enumerate(schedules if isinstance(schedules, (list, tuple)) else [schedules]):
        if not found and _is_tried(schedule, PARAM_SCHEDULERS, cfg):
            key = f'param_scheduler.{index}' if isinstance(schedules, (list, tuple)) else 'param_scheduler'
            yield from _tried(key, schedule, lambda schedule=schedule: PARAM_SCHEDULERS.build(
                {name: value for name, value in schedule.items() if name != 'convert_to_iter_based'},
                default_args=dict(optimizer=_optimizer(optimizer))))


def _optimizer(settings: dict) -> torch.optim.Optimizer:
    kept = {name: value for name, value in settings.items() if name not in OF_GPUS}
    return OPTIMIZERS.build(dict(kept, params=[torch.nn.Parameter(torch.zeros(1, 1))]))


def _step(wrapper: OptimWrapper) -> None:
    """One update, in which gradients are clipped."""
    parameter, = wrapper.optimizer.param_groups[0]['params']
    wrapper.update_params(parameter.sum())


def _try_hooks(cfg: Config) -> Iterator[Finding]:
    hooks = [(f'default_hooks.{name}', hook) for name, hook in (cfg.get('default_hooks') or {}).items()]
    hooks += [(f'custom_hooks.{index}', hook) for index, hook in enumerate(cfg.get('custom_hooks') or ())]
    for key, hook in hooks:
        if _is_tried(hook, HOOKS, cfg):
            yield from _tried(key, hook, lambda hook=hook: HOOKS.build(
                {name: value for name, value in hook.items() if name != 'priority'}))


def _is_tried(settings: Any, registry: Registry, cfg: Config) -> bool:
    """Whether a part is built here: of a class that is known, and not the user's own."""
    kind = class_of(settings, registry, cfg) if isinstance(settings, dict) and settings.get('type') else None
    packages = ('torch',) if registry is OPTIMIZERS else LIBRARIES  # mmengine's own wants processes
    return kind is not None and kind.__module__.partition('.')[0] in packages


def _tried(key: str, settings: dict, build: Callable[[], Any]) -> Iterator[Finding]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            build()
    except RuntimeError:  # what it needs is not there yet, as the runner's visualizer
        return
    except Exception as error:  # theirs are of any class: an assertion, a wrong type, a missing key
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
