"""Synchronised batch normalisation for several processes on CPUs, which torch and mmcv have for accelerators only.

In one process nothing of this is used: mmengine turns SyncBN into BatchNorm, and says so.

Delete when torch.nn.SyncBatchNorm takes CPU tensors and DistributedDataParallel takes it on CPUs.
"""
from typing import Any

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOverProcesses(torch.autograd.Function):
    """all_reduce(SUM) whose gradient is summed likewise: each process's loss depends on all processes' values."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = value.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class CPUSyncBatchNorm(_BatchNorm):
    """nn.SyncBatchNorm for CPU tensors: in training mode it equals BatchNorm on the batches of all processes together.

    Processes may have different numbers of positions.  Statistics are float32 at least, under autocast too.

    Source: the idea of detectron2's NaiveSyncBatchNorm.
    """
    process_group: dist.ProcessGroup | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f'SyncBN got an input of {input.dim()} dimensions, wanted (N, C, ...)')

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> the same shape and type.

        Raises:
            ValueError: if all processes together have one value a channel, or the input has no channels.
        """
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        axes, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
        local = torch.cat([x.sum(axes), x.new_full((1,), x.numel() // x.shape[1])])
        total = _SumOverProcesses.apply(local, self.process_group)
        count = total[-1].detach()
        if count <= 1:
            raise ValueError(f'SyncBN of {tuple(x.shape)} has one value a channel over all processes, and the variance '
                             'needs more: train with larger batches')
        mean = total[:-1] / count
        centred = x - mean.view(shape)
        variance = _SumOverProcesses.apply(centred.square().sum(axes), self.process_group) / count
        if self.track_running_stats:
            self._update_statistics(mean.detach(), variance.detach() * count / (count - 1))
        y = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(unbiased_variance, momentum)


def replace_sync_batch_norm(model: nn.Module) -> int:
    """Turn every nn.SyncBatchNorm into a CPUSyncBatchNorm, in place; log it.

    Parameters, buffers and names stay: an optimiser or a checkpoint does not notice.

    Returns:
        How many there were.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    for norm in norms:
        norm.__class__ = CPUSyncBatchNorm  # both are _BatchNorm with another forward method
    if norms:
        print_log(f'SyncBN on CPUs: the batch statistics of {len(norms)} layers are synchronised by all_reduce over '
                  f'{dist.get_world_size()} processes', logger='current')
    return len(norms)


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """MMDistributedDataParallel for CPUs: the model's SyncBN layers are replaced (``replace_sync_batch_norm``)."""

    def __init__(self, module: nn.Module, *args: Any, **kwargs: Any):
        replace_sync_batch_norm(module)
        super().__init__(module, *args, **kwargs)
