"""From a cell to the mmengine config that trains and tests it."""
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import expansion  # noqa: F401, registers ExpandedEVA02
from cells import EXPANSIONS, Cell, Patches, Training
from grids import Dataset

from apt_dense.core.embed import ADDED_PARAMETERS
from apt_dense.extras import from_extra

with from_extra('mm'):
    from mmengine.config import Config

ADDED = tuple(f'backbone.{name}' for name in ADDED_PARAMETERS)
NUM_VALIDATIONS = 5  # of a training from random weights: its curve
NUM_CURVE_IMAGES = 50  # of each of them


def build_config(cell: Cell, dataset: Dataset, configs: Path, data_root: Path,
                 choice: Mapping[str, Any] | None = None, weights: Path | None = None) -> Config:
    """The config of a cell: that of its task's dense model, changed.

    Args:
        dataset: what the cell's dataset is.
        configs: the folder of det.py and seg.py.
        data_root: where the dataset is.
        choice: 'thresholds', fine to coarse, and 'max_tokens'; by default 0 and None, which merges nothing.  For a
            training with drawn thresholds also 'warm', their two ends.
        weights: of the cell's parent.
    """
    cfg = deepcopy(_read(configs / f'{cell.task}.py'))  # Config.copy shares what is nested
    cfg.randomness = dict(seed=cell.seed)
    cfg.load_from = None if weights is None else str(weights)
    _set_data(cfg, dataset, data_root)
    if cell.patches is not None:
        _set_patches(cfg, cell.patches, choice)
        _set_extra(cfg, cell.training, choice)
    if cell.training.share:
        _set_training(cfg, cell)
        cfg.train_cfg.max_iters = num_iterations(cell, configs)
        if cell.training.start == 'random':
            cfg.train_cfg.val_interval = max(1, cfg.train_cfg.max_iters // NUM_VALIDATIONS)
    return cfg


def num_iterations(cell: Cell, configs: Path) -> int:
    """How many iterations a cell trains; 0 if it only tests."""
    share = cell.training.share
    return max(1, round(share * _read(configs / f'{cell.task}.py').train_cfg.max_iters)) if share else 0


def dense_twin(cfg: Config) -> Config:
    """The config of the dense model in place of a cell's, all else the same; all of it is trained."""
    twin = deepcopy(cfg)
    twin.model.backbone.update(type='APTEVA02', num_scales=1, thresholds=(), max_tokens=None, detail_branch='zero',
                               proportional_attention=False)
    twin.model.backbone.pop('expansion', None)
    twin.model.update(trainable=None, distill=None)
    return twin


@cache
def _read(path: Path) -> Config:
    return Config.fromfile(path)


def _set_data(cfg: Config, dataset: Dataset, data_root: Path) -> None:
    root = f'{data_root}/'
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.dataset.data_root = root
        loader.update(num_workers=0, persistent_workers=False)
    cfg.val_dataloader.dataset.indices = NUM_CURVE_IMAGES
    for split in ('val', 'test'):
        evaluators = cfg[f'{split}_evaluator']
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            if 'ann_file' in evaluator:
                evaluator.ann_file = f'{root}annotations/instances_val.json'
                evaluator.enlarged = dataset.enlarged


def _set_patches(cfg: Config, patches: Patches, choice: Mapping[str, Any] | None) -> None:
    if choice is None:
        choice = dict(thresholds=(0.0,) * (patches.num_scales - 1), max_tokens=None)
    cfg.model.backbone.update(
        num_scales=patches.num_scales, scorer=patches.scorer, detail_branch=patches.detail_branch,
        rope_anchor=patches.rope_anchor, proportional_attention=patches.proportional, thresholds=choice['thresholds'],
        max_tokens=choice['max_tokens'])


def _set_extra(cfg: Config, training: Training, choice: Mapping[str, Any] | None) -> None:
    if 'distilled' in training.extra:
        cfg.model.distill = dict(checkpoint=cfg.load_from)
    if training.extra in EXPANSIONS:
        cfg.model.backbone.update(type='ExpandedEVA02', expansion=training.extra)
    if training.is_warm and choice is not None:
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type='WarmThresholdsHook', low=choice['warm'][0],
                                                    high=choice['warm'][1])]


def _set_training(cfg: Config, cell: Cell) -> None:
    """Shorten the schedule, warm-up and fall of the rate in proportion; scale the rate; freeze."""
    training = cell.training

    def shortened(iterations: int) -> int:
        return max(1, round(training.share * iterations))

    cfg.optim_wrapper.optimizer.lr *= training.rate
    for schedule in cfg.param_scheduler:
        schedule.update(begin=schedule.begin and shortened(schedule.begin), end=shortened(schedule.end))
        if 'eta_min' in schedule:
            schedule.eta_min *= training.rate
    if training.start == 'dense':
        cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    if training.trains == 'added':
        cfg.model.trainable = (*ADDED, *(['backbone.terms'] if training.extra in EXPANSIONS else []))
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type='CheckFrozenLoadedHook')]
