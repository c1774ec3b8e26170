"""A model, a dataset and runs of milliseconds, with randomness wherever a training has it."""
import itertools
import random
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, METRICS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import BatchSampler

from apt_dense.mm.fault_tolerance import make_fault_tolerant

LOADED = []  # indices that this process has loaded for training
RUNS = itertools.count()
METRIC_VALUES = []  # what the next validations will find; 0 when it is empty

DATA_SAMPLERS.register_module(module=BatchSampler)


@MODELS.register_module()
class ToyRegressor(BaseModel):
    """Linear regression of 1 on three numbers, with dropout."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, inputs, mode='tensor'):
        values = self.layer(torch.stack(inputs))
        if mode == 'loss':
            return {'loss': (nn.functional.dropout(values) - 1).square().mean()}
        return list(values)


@DATASETS.register_module()
class ToyDataset:
    """Rows of noise from all three generators; every fifth try of an item fails and another is drawn."""

    metainfo = {'classes': ('one',)}

    def __init__(self, size=10, test_mode=False):
        self.size, self.test_mode, self.scale = size, test_mode, 1.0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if self.test_mode:
            return {'inputs': torch.full((3,), float(index))}
        LOADED.append(index)
        while np.random.randint(5) == 0:
            index = np.random.randint(self.size)
        noise = torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])
        return {'inputs': self.scale * (index + noise)}


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Returns what METRIC_VALUES says."""

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {'mAP': METRIC_VALUES.pop(0) if METRIC_VALUES else 0.0}


class Interrupted(Exception):
    """Stands in for a kill, where a process of its own is not needed."""


@HOOKS.register_module()
class InterruptHook(Hook):
    """Calls ``action`` before one training iteration or one validation."""

    def __init__(self, action, train_iter=None, val=False):
        self.action, self.train_iter, self.val = action, train_iter, val

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.train_iter:
            self.action()

    def before_val_epoch(self, runner):
        if self.val:
            self.action()


def interrupt():
    raise Interrupted


def toy_config(work_dir: Path, **settings) -> Config:
    """A config of 10 iterations, a checkpoint every second."""
    val_loader = dict(dataset=dict(type='ToyDataset', size=2, test_mode=True), batch_size=1, num_workers=0,
                      sampler=dict(type='DefaultSampler', shuffle=False))
    defaults = dict(
        default_scope='mmengine', work_dir=str(work_dir), model=dict(type='ToyRegressor'), randomness=dict(seed=3),
        train_dataloader=dict(dataset=dict(type='ToyDataset'), batch_size=2, num_workers=0,
                              sampler=dict(type='InfiniteSampler', shuffle=True)),
        train_cfg=dict(by_epoch=False, max_iters=10, val_interval=5),
        val_dataloader=val_loader, val_cfg=dict(), val_evaluator=dict(type='ToyMetric'),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        param_scheduler=[dict(type='CosineAnnealingLR', by_epoch=False, T_max=10)],
        log_processor=dict(by_epoch=False, window_size=4),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1),
                           checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=2)))
    cfg = Config({**defaults, **settings})
    make_fault_tolerant(cfg)
    return cfg


def run_toy(work_dir: Path, resume: str | None = None, **settings) -> Runner:
    """Train, or resume from a checkpoint in the work directory."""
    cfg = toy_config(work_dir, **settings)
    if resume:
        cfg.resume, cfg.load_from = True, str(work_dir / resume)
    # A runner shares the message hub and the visualiser with others of its name; a process that starts has none.
    cfg.experiment_name = cfg.visualizer.name = f'toy_{next(RUNS)}'
    runner = Runner.from_cfg(cfg)
    LOADED.clear()
    runner.train()
    return runner
