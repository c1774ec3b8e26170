"""What test_distributed.py runs inside each of two real processes; the results are compared there."""
import copy
import os
import signal
from pathlib import Path

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import HOOKS, MODELS
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from apt_dense.mm.fault_tolerance.bad_data import BadDataHook
from apt_dense.mm.training.sync_bn import CPUDistributedDataParallel, CPUSyncBatchNorm

NORM = dict(type='SyncBN', requires_grad=True)
DIMS = 16
SEGMENTOR = dict(
    type='mmseg.EncoderDecoder', _scope_='mmseg',
    backbone=dict(type='APTEVA02', img_size=64, embed_dims=DIMS, depth=4, num_heads=2, window_size=0,
                  global_block_indexes=range(4), out_indices=range(4), with_cls_token=True, pretrain_img_size=64,
                  num_scales=3, thresholds=(3.0, 3.0)),
    neck=dict(type='Feature2Pyramid', embed_dim=DIMS, rescales=[4, 2, 1, 0.5], norm_cfg=NORM),
    decode_head=dict(type='UPerHead', in_channels=[DIMS] * 4, in_index=[0, 1, 2, 3], channels=8, pool_scales=(1, 2),
                     num_classes=3, dropout_ratio=0.0, norm_cfg=NORM),
    auxiliary_head=dict(type='FCNHead', in_channels=DIMS, in_index=1, channels=8, num_convs=1, concat_input=False,
                        num_classes=3, dropout_ratio=0.0, norm_cfg=NORM))


class Loss(nn.Module):
    """A segmentor whose forward pass is the sum of its losses, as data-parallel wrappers want it."""

    def __init__(self, segmentor: nn.Module):
        super().__init__()
        self.segmentor = segmentor

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
        return self.segmentor.parse_losses(self.segmentor.loss(images, samples))[0]


def joined_batch() -> tuple[Tensor, Tensor]:
    """Images (2, 3, 64, 64), the first flat, the second noise, and labels (2, 1, 64, 64)."""
    generator = torch.Generator().manual_seed(1)
    images = torch.stack([torch.full((3, 64, 64), 0.25), torch.randn(3, 64, 64, generator=generator)])
    return images, torch.randint(3, (2, 1, 64, 64), generator=generator)


def gradients(model: nn.Module, images: Tensor, labels: Tensor, steps: int = 2) -> dict[str, Tensor]:
    """Gradients and buffers after the last of several passes; a wrapper reports unused parameters in the second."""
    for _ in range(steps):
        model.zero_grad()
        model(images, labels).backward()
    inner = getattr(model, 'module', model)
    found = {name: parameter.grad for name, parameter in inner.named_parameters()}
    return {**found, **{name: buffer.clone() for name, buffer in inner.named_buffers()}}


UNEVEN = ((1, 4, 3, 5), (2, 4, 2, 2))  # a rank's batch


def normalised(norm: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Output, and gradients of the sum of its squares weighted by position, of a norm in training mode."""
    x = x.clone().requires_grad_()
    y = norm(x)
    (y.square() * torch.linspace(0, 1, 4).view(1, 4, 1, 1) + y * x.detach()).sum().backward()
    return y.detach(), x.grad


def refusal(finite: bool, name: str) -> str:
    """What BadDataHook says before a step if this rank's loss is finite or not."""
    hook = BadDataHook()
    hook._batches = [([name], torch.tensor(finite))]
    try:
        hook._before_step(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1), (), {})
    except FloatingPointError as error:
        return str(error)
    return ''


@HOOKS.register_module()
class DistributedChecksHook(Hook):
    """Writes rank{N}.pth: gradients of a rank's own half of a batch and of the joined batch, weights after training."""

    def before_train(self, runner) -> None:
        rank = dist.get_rank()
        torch.manual_seed(0)
        segmentor = MODELS.build(SEGMENTOR)
        joined = Loss(revert_sync_batchnorm(copy.deepcopy(segmentor)))
        images, labels = joined_batch()
        own = slice(rank, rank + 1)
        wrapped = CPUDistributedDataParallel(Loss(segmentor), broadcast_buffers=False)
        self.results = dict(
            shared=gradients(wrapped, images[own], labels[own]), joined=gradients(joined, images, labels),
            tokens=segmentor.backbone.last_layout.scale_counts)
        batches = [torch.randn(shape, generator=torch.Generator().manual_seed(2)) for shape in UNEVEN]
        self.results['uneven'] = normalised(CPUSyncBatchNorm(4), batches[rank])
        positions = torch.cat([batch.movedim(1, 3).reshape(-1, 4) for batch in batches])[..., None, None]
        joined = normalised(nn.BatchNorm2d(4), positions)
        split = [len(batch) * batch[0, 0].numel() for batch in batches]
        self.results['uneven_joined'] = tuple(
            values.split(split)[rank].view(len(batches[rank]), *UNEVEN[rank][2:], 4).movedim(3, 1) for values in joined)

        self.results['refused'] = refusal(finite=rank == 0, name=f'{rank}.jpg')

    def after_train(self, runner) -> None:
        self.results['weights'] = runner.model.module.state_dict()
        torch.save(self.results, Path(runner.work_dir) / f'rank{dist.get_rank()}.pth')


@HOOKS.register_module()
class SignalOneRankHook(Hook):
    """The second rank gets SIGUSR1 in an iteration, counted from 0."""

    def __init__(self, train_iter: int):
        self.train_iter = train_iter

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter == self.train_iter and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
