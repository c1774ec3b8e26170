"""Train loops whose resumed runs equal uninterrupted ones, bit for bit where the arithmetic is reproducible.

Nothing random depends on what happened before: each training iteration draws from generators that are seeded from
(seed, rank, iteration), each sample from (seed, rank, iteration, place in the batch).  So there is no random state to
store, the number of data loader workers does not matter, and validation in between changes nothing.

Skipped data is not loaded: the loop skips batches of indices.  For that, a sampler or batch sampler

- yields the same sequence whenever it is built with the same seed, dataset and number of processes;
- depends on nothing else than the epoch given to ``set_epoch``, on the sampler or the batch sampler, if it has that;
- draws no data from the dataset while it is iterated.

mmengine's, mmdet's and mmseg's do.  What is not exact: transforms that keep samples from one call to the next (mmdet's
CachedMosaic and CachedMixUp) or have generators of their own; another number of processes or batch size than before
(a warning is logged); GPU kernels that add in no fixed order.
"""
import logging
from collections.abc import Iterator
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.runner.base_loop import BaseLoop
from torch import nn
from torch.utils.data import DataLoader

from apt_dense.mm.fault_tolerance.resumable_data import make_resumable, seed_generators
from apt_dense.mm.fault_tolerance.resume_checks import changed_settings, check_resumable, remedy, training_settings


class _NotStarted:
    """Stands in for a data loader where mmengine would start its workers before the checkpoint says at what batch."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class _ResumableLoop:
    """What both loops share: a seeded loader, seeded iterations, and the validation that an interruption cost."""

    validated_iter = -1  # the iteration after which the resumed run has validated; ResumeStateHook sets it

    def _build_loader(self, runner: Runner, dataloader: DataLoader | dict, endless: bool) -> DataLoader:
        BaseLoop.__init__(self, runner, dataloader)
        self._seed = runner.seed
        return make_resumable(self.dataloader, runner.seed, endless)

    def run_iter(self, *args: Any) -> None:
        """One iteration, as mmengine's, with random numbers of its own."""
        seed_generators(self._seed, get_rank(), self._iter)
        super().run_iter(*args)

    def _check_seed(self) -> None:
        if self.runner.seed != self._seed:  # mmengine took the checkpoint's, after the loader was built
            print_log(f'the data is drawn with seed {self._seed}, and the checkpoint was trained with '
                      f'{self.runner.seed}: set randomness=dict(seed={self.runner.seed}) to resume exactly',
                      logger='current', level=logging.WARNING)

    def _validate_if_due(self, count: int, last: int) -> None:
        self._decide_current_val_interval()
        if self._iter == self.validated_iter:
            return
        if (self.runner.val_loop is not None and count >= self.val_begin
                and (count % self.val_interval == 0 or count == last)):
            self.runner.val_loop.run()


@LOOPS.register_module()
class ResumableIterBasedTrainLoop(_ResumableLoop, IterBasedTrainLoop):
    """mmengine's IterBasedTrainLoop that resumes exactly; arguments are its.

    Resumed at an iteration that is followed by validation, it validates first: the interruption may have come before
    the validation's end.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, *args: Any, **kwargs: Any):
        loader = self._build_loader(runner, dataloader, endless=True)
        super().__init__(runner, _NotStarted(loader.dataset), *args, **kwargs)
        self.dataloader = loader

    def run(self) -> nn.Module:
        """Train to the end, from where the runner has resumed."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self._check_seed()
        if self._iter > 0:
            self._validate_if_due(self._iter, self._max_iters)
        self.dataloader.batch_sampler.skip = self._iter
        self.dataloader_iterator = None
        while self._iter < self._max_iters and not self.stop_training:
            if self.dataloader_iterator is None:
                self.dataloader_iterator = iter(self.dataloader)
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._validate_if_due(self._iter, self._max_iters)
        self.dataloader_iterator = None  # ends its workers now, not when the garbage is collected
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model


@LOOPS.register_module()
class ResumableEpochBasedTrainLoop(_ResumableLoop, EpochBasedTrainLoop):
    """mmengine's EpochBasedTrainLoop that resumes exactly, in the middle of an epoch too; arguments are its.

    Resumed at the end of an epoch that is followed by validation, it validates first.

    Raises:
        ValueError: for an endless sampler, with which no epoch would end.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, *args: Any, **kwargs: Any):
        loader = self._build_loader(runner, dataloader, endless=False)
        if isinstance(loader.batch_sampler.sampler, InfiniteSampler):
            raise ValueError(f'{type(loader.batch_sampler.batch_sampler).__name__} of an InfiniteSampler is endless, '
                             'so would be the first epoch: train with IterBasedTrainLoop, or take a DefaultSampler')
        super().__init__(runner, loader, *args, **kwargs)

    def run(self) -> nn.Module:
        """Train to the end, from where the runner has resumed."""
        self.runner.call_hook('before_train')
        self._check_seed()
        if self._iter > 0 and self._iter == self._epoch * len(self.dataloader):
            self._validate_if_due(self._epoch, self._max_epochs)
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate_if_due(self._epoch, self._max_epochs)
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Train to the end of the epoch."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        batches = self.dataloader.batch_sampler
        batches.set_epoch(self._epoch)
        batches.epoch_start = self._epoch * len(batches)
        batches.skip = self._iter - batches.epoch_start
        for index, data_batch in enumerate(self.dataloader, batches.skip):
            self.run_iter(index, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


@HOOKS.register_module()
class ResumeStateHook(Hook):
    """Keep in the checkpoint what mmengine does not.

    That is early stopping's count, whether the validation after the iteration is done, and what the order of the data
    hangs on.

    On resuming, a warning is logged for each setting of the optimiser, the schedules, the averaged weights and the
    length that differs between the config and the checkpoint; if the number of processes or the batch size has changed;
    and if checkpoints fall between two optimiser steps of gradient accumulation, whose first gradients they lack.

    Raises:
        DataError: on resuming, if the checkpoint's model or optimiser is another one.
    """

    priority = 'HIGH'  # before EMAHook, which loads its own copy

    def __init__(self):
        self._validated_iter = -1

    def before_train(self, runner: Runner) -> None:
        """Warn of checkpoints inside an accumulation."""
        steps = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        for hook in runner.hooks:
            interval = getattr(hook, 'interval', -1)
            if type(hook).__name__.endswith('CheckpointHook') and not hook.by_epoch and interval > 0 and (
                    interval % steps):
                runner.logger.warning(f'checkpoints every {interval} iterations fall between optimiser steps, which '
                                      f'are {steps} iterations apart: such a checkpoint lacks gradients, and resuming '
                                      'from it is not exact')

    def after_val(self, runner: Runner) -> None:
        """Checkpoints from now to the next iteration are such after validation."""
        self._validated_iter = runner.iter

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add an entry 'resume' of builtin types."""
        checkpoint['resume'] = dict(
            _data_layout(runner), **training_settings(runner), validated_iter=self._validated_iter,
            stop_training=bool(runner.train_loop.stop_training),
            early_stopping={hook.monitor: dict(wait_count=hook.wait_count, best_score=float(hook.best_score))
                            for hook in _early_stopping(runner)})

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore it, if the runner resumes, and say what else the checkpoint decides."""
        if not runner._resume:
            return
        check_resumable(runner, checkpoint)
        for line in changed_settings(runner, checkpoint):
            runner.logger.warning(f'{line}. {remedy(runner)}')
        state = checkpoint.get('resume')
        if state is None:
            return
        for name, value in _data_layout(runner).items():
            if state[name] != value:
                runner.logger.warning(f'{name} was {state[name]} in the checkpoint and is {value}: the images come in '
                                      'another order than without the interruption')
        runner.train_loop.validated_iter = self._validated_iter = state['validated_iter']
        for hook in _early_stopping(runner):
            vars(hook).update(state['early_stopping'].get(hook.monitor, {}))
            if state['stop_training']:
                runner.train_loop.stop_training = True
                runner.logger.warning('early stopping has ended this run: to train on, take EarlyStoppingHook out')


def _data_layout(runner: Runner) -> dict[str, int]:
    return dict(world_size=get_world_size(), dataset_size=len(runner.train_dataloader.dataset),
                batches_per_epoch=len(runner.train_dataloader))


def _early_stopping(runner: Runner) -> list[EarlyStoppingHook]:
    return [hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook)]
