"""Bad samples and losses that are not finite: stopped with the file's name, or skipped and counted."""
import logging
from typing import Any

import torch
from mmcv.transforms import BaseTransform
from mmengine import dist
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, TRANSFORMS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import get_worker_info

from apt_dense.mm.data.load_picture import LoadImageFromFile
from apt_dense.mm.errors import BadSampleError, DataError, NotFiniteError

POLICIES = ('raise', 'skip')
MAX_WORKERS = 256  # of a data loader, that are counted apart


def check_policy(name: str, policy: str) -> None:
    """Raise DataError unless the policy is 'raise' or 'skip'."""
    if policy not in POLICIES:
        raise DataError(f"{name}={policy!r}: choose 'raise' (stop with the file's name) or 'skip' (count and go on)")


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """``LoadImageFromFile`` that compares the size with the annotations', if they give one.

    Boxes for a picture of another size fit nothing.  (Truncated and corrupt files do not load: OpenCV decodes a file in
    memory whole or not at all.)

    Raises:
        DataError: naming the file and both sizes.
    """

    def transform(self, results: dict) -> dict:
        """Add img, img_shape and ori_shape."""
        wanted = results.get('height'), results.get('width')
        results = super().transform(results)
        size = results['img'].shape[:2]
        if None not in wanted and wanted != size:
            raise DataError(f'{results["img_path"]} is {size[0]}x{size[1]} px (height x width), the annotations say '
                            f'{wanted[0]}x{wanted[1]}: the boxes are of another picture, or it is rotated by its EXIF '
                            'data')
        return results


@TRANSFORMS.register_module()
class GuardSamples(BaseTransform):
    """Transforms that may fail on a bad file or annotation, and what to do then.

    ::

        dict(type='GuardSamples', on_bad='skip', transforms=[
            dict(type='LoadCheckedImage'), dict(type='LoadAnnotations', with_bbox=True)])

    Args:
        transforms: a pipeline; the loading steps, usually.
        on_bad: 'raise', or 'skip': log the file and the reason, count it (BadDataHook reports the number), and let
            mmengine's datasets take another image at random.  In validation and testing mmengine takes no other, and
            stops.

    Raises:
        BadSampleError: naming the file, from whatever a transform raised.
    """

    def __init__(self, transforms: list[dict], on_bad: str = 'raise'):
        check_policy('on_bad', on_bad)
        self.on_bad = on_bad
        self.pipeline = Compose(transforms)
        # Of each worker, in memory that they share; a slot each, so that none overwrites another's.
        self.skipped = torch.zeros(MAX_WORKERS + 1, dtype=torch.int64).share_memory_()

    def transform(self, results: dict) -> dict | None:
        """Run the transforms; None for a bad sample that is skipped."""
        paths = [str(results[key]) for key in ('img_path', 'seg_map_path') if results.get(key)]
        try:
            return self.pipeline(results)
        except Exception as error:  # pycocotools raises no narrower one
            said = str(error) or type(error).__name__
            reason = said if any(path in said for path in paths) else f'{" with ".join(paths)}: {said}'
            if self.on_bad == 'raise':
                raise BadSampleError(f"bad sample: {reason}. Repair or remove it, or set on_bad='skip'") from error
            worker = get_worker_info()
            self.skipped[0 if worker is None else 1 + worker.id % MAX_WORKERS] += 1
            print_log(f'bad sample skipped ({int(self.skipped.sum())} in this process so far): {reason}',
                      logger='current', level=logging.WARNING)
            return None


@HOOKS.register_module()
class BadDataHook(Hook):
    """Keep losses and gradients that are not finite out of the weights, and report how many samples were skipped.

    Losses and gradients are looked at before each optimiser step, on all ranks, after clipping and accumulation.  Where
    float16's loss scaler skips a step because of an overflow, it is not counted; a loss that is not finite is.  With a
    step that is skipped, floating-point buffers (the statistics of batch norms) return to what they were after the
    forward pass of the last step that was not.

    Args:
        on_nan: 'raise', or 'skip' the step, log it and count it.
        max_in_a_row: stop after so many skipped steps in a row: then it is not the data.
        interval: iterations between two reports of skipped samples (``GuardSamples``) over all ranks.

    Raises:
        NotFiniteError: naming the files of the batches whose loss was not finite, of all ranks.  (Or of all batches
            of the step, if only the gradients were not.)
    """

    priority = 'ABOVE_NORMAL'  # before EMAHook, which averages or copies buffers

    def __init__(self, on_nan: str = 'raise', max_in_a_row: int = 10, interval: int = 50):
        check_policy('on_nan', on_nan)
        self.on_nan = on_nan
        self.max_in_a_row = max_in_a_row
        self.interval = interval
        self.num_skipped_steps = self._in_a_row = self._num_reported = 0
        self._files: list[str] = []  # of the current batch
        self._batches: list[tuple[list[str], torch.Tensor]] = []  # files, is the loss finite; since the last step
        self._handles: list[Any] = []
        self._model: nn.Module | None = None
        self._kept_buffers: dict[str, torch.Tensor] = {}  # at the last step; of on_nan='skip' only

    def before_train(self, runner: Runner) -> None:
        self._model = model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._handles = [model.register_forward_hook(self._note_losses),
                         runner.optim_wrapper.optimizer.register_step_pre_hook(self._before_step)]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        samples = data_batch.get('data_samples', ()) if isinstance(data_batch, dict) else ()
        self._files = [str(getattr(sample, 'img_path', '?')) for sample in samples]
        if not self._kept_buffers:  # the first iteration of this run
            self._keep_buffers()

    def _note_losses(self, model: nn.Module, inputs: tuple, losses: Any) -> None:
        """Remember whether a batch's losses are finite, without waiting for the device."""
        if not (model.training and isinstance(losses, dict)):
            return
        values = [value.detach().float().sum() for loss in losses.values()
                  for value in (loss if isinstance(loss, (list, tuple)) else [loss]) if torch.is_tensor(value)]
        if values:
            self._batches.append((self._files, torch.stack(values).isfinite().all()))

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group['params']
                     if parameter.grad is not None]
        finite = [norm.isfinite() for norm in torch._foreach_norm(gradients)] if gradients else []
        if self._any_rank([*finite, *(finite for _, finite in self._batches)]):
            self._refuse()
            for group in optimizer.param_groups:
                for parameter in group['params']:
                    parameter.grad = None  # optimisers pass over these: no step, no weight decay, no state
        else:
            self._in_a_row = 0
            self._keep_buffers()
        self._batches = []

    def _keep_buffers(self) -> None:
        """Copy what a forward pass in training mode may change: the weights are not enough to undo a step."""
        if self.on_nan == 'skip':
            self._kept_buffers = {name: buffer.detach().clone() for name, buffer in self._floating_buffers()}

    def _restore_buffers(self) -> None:
        for name, buffer in self._floating_buffers():
            if name in self._kept_buffers:
                buffer.copy_(self._kept_buffers[name])

    def _floating_buffers(self) -> list[tuple[str, torch.Tensor]]:
        return [(f'{prefix}.{name}', buffer) for prefix, module in self._model.named_modules() if module.training
                for name, buffer in module.named_buffers(recurse=False) if buffer.is_floating_point()]

    @staticmethod
    def _any_rank(finite: list[torch.Tensor]) -> bool:
        """True if something is not finite on any rank: all must do the same, and sharded gradients differ."""
        bad = torch.stack([~flag for flag in finite]).any().float() if finite else torch.zeros((), device=get_device())
        dist.all_reduce(bad)
        return bool(bad.item())

    def _refuse(self) -> None:
        """Raise or count."""
        what = 'a loss that is not finite'
        own = [name for files, finite in self._batches if not finite for name in files]
        named = [name for files in dist.all_gather_object(own) for name in files]
        if not named:
            what = 'gradients that are not finite'
            own = [name for files, _ in self._batches for name in files]
            named = [name for files in dist.all_gather_object(own) for name in files]
        message = f'{what}; images: {", ".join(named)}'
        if self.on_nan == 'raise':
            raise NotFiniteError(f"{message}. The weights are as they were before; on_nan='skip' leaves out such steps")
        self._restore_buffers()
        self.num_skipped_steps += 1
        self._in_a_row += 1
        print_log(f'optimiser step skipped ({self.num_skipped_steps} so far): {message}', logger='current',
                  level=logging.WARNING)
        if self._in_a_row >= self.max_in_a_row:
            raise NotFiniteError(f'{self._in_a_row} optimiser steps in a row were skipped: this is not the data. '
                                 f'Lower the learning rate or clip the gradients. Last: {message}')

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Report; and refuse a loss that float16's scaler has passed over."""
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        # Where a step was made, _before_step has looked, and asked the other ranks.
        if self._batches and scaler is not None and scaler.is_enabled() and runner.optim_wrapper.should_update():
            if self._any_rank([finite for _, finite in self._batches]):
                self._refuse()
            self._batches = []
        if self.every_n_train_iters(runner, self.interval):
            self._report(runner)

    def after_train(self, runner: Runner) -> None:
        for handle in self._handles:
            handle.remove()
        self._report(runner)

    def _report(self, runner: Runner) -> None:
        """Log the number of skipped samples and steps, if it has grown."""
        guards = find_guards(runner.train_dataloader.dataset)
        samples = torch.tensor([sum(int(guard.skipped.sum()) for guard in guards)], device=get_device())
        dist.all_reduce(samples)
        total = samples.item() + self.num_skipped_steps
        if total > self._num_reported:
            self._num_reported = total
            runner.logger.warning(f'skipped so far: {samples.item()} bad samples, {self.num_skipped_steps} optimiser '
                                  'steps')


def find_guards(dataset: Any) -> list[GuardSamples]:
    """The GuardSamples in the pipelines of a dataset, inside wrappers too."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])
    found = [step for step in steps if isinstance(step, GuardSamples)]
    return found + [guard for part in inner if part is not None for guard in find_guards(part)]
