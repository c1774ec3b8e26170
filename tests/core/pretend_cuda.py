"""Passes over pretend CUDA tensors: what they launch, and where the host waits.  test_pretend_cuda.py runs this file.

torch's FakeTensorMode runs forward and backward passes over tensors without content, and raises where one of a CPU
meets one of a GPU.  The kernels' own checks and the memory are not covered.
"""
import json
import os
import sys
from collections import Counter
from contextlib import nullcontext
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from apt_dense import APTEVA02, TokenLayout
from apt_dense.core import chooser

SIZE_PX, BATCH, DEPTH = 256, 2, 4
WAITS = {'aten::_local_scalar_dense', 'aten::is_nonzero', 'aten::nonzero', 'aten::masked_select', 'aten::equal'}
FREE = {'aten::empty.memory_format', 'aten::new_empty', 'aten::empty_like', 'aten::_unsafe_view',
        'aten::empty_strided', 'aten::new_empty_strided', 'aten::lift_fresh'}


class Launches(TorchDispatchMode):
    """Counts kernels of the device, waits of the host and copies to the device; views launch nothing."""

    def __init__(self):
        super().__init__()
        self.kernels, self.waits, self.copies = Counter(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **kwargs or {})
        name = function.name()
        devices = {part.device.type for part in tree_leaves((args, kwargs, outputs)) if isinstance(part, Tensor)}
        if 'cuda' not in devices or not name.startswith(('aten::', 'torch_attn::')) or name in FREE:
            return outputs
        is_view = any(result.alias_info is not None and not result.alias_info.is_write
                      for result in function._schema.returns)
        if name in WAITS or name == 'aten::_to_copy' and outputs.device.type == 'cpu':
            self.waits += 1
        elif name == 'aten::_to_copy' and 'cpu' in devices:
            self.copies += 1
        elif not is_view:
            self.kernels[name] += 1
        return outputs


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The fused kernel, which torch would choose in C++ of its CUDA build."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


KINDS = {  # of a model: what it is built with
    'dense': dict(num_scales=1), 'apt': dict(num_scales=3), 'counted': dict(num_scales=3, proportional_attention=True)}


def count(train: bool, kind: str, with_cls_token: bool) -> dict:
    """Of the second pass, under bfloat16 autocast; its gradients included in ``total``."""
    settings = dict(img_size=SIZE_PX, embed_dims=64, depth=DEPTH, num_heads=2, drop_path_rate=0.4,
                    thresholds=(3.0,) * (KINDS[kind]['num_scales'] - 1), with_cls_token=with_cls_token, **KINDS[kind])
    settings |= dict(window_size=0, global_block_indexes=()) if with_cls_token else dict(
        window_size=8, global_block_indexes=(1, 3))
    counts = real_counts(settings)
    log, begins = Launches(), []

    def wait(*_: object) -> object:
        log.waits += 1
        return counts

    with mock.patch.object(TokenLayout, '_count', staticmethod(wait)), \
            mock.patch.object(chooser, 'check_finite', wait), FakeTensorMode(allow_non_fake_inputs=False):
        with mock.patch.object(APTEVA02, '_init_parameters', lambda self: None), torch.device('cuda:0'):
            model, x = APTEVA02(**settings).train(train), torch.empty(BATCH, 3, SIZE_PX, SIZE_PX)
        for block in model.blocks:
            block.register_forward_pre_hook(lambda *_: begins.append(log.kernels.total()))
        for number in range(2):  # the first makes the constants and tables of this grid
            log.waits, begins[:] = 0, []
            with log if number else nullcontext(), torch.set_grad_enabled(train):
                with torch.autocast('cuda', torch.bfloat16):
                    output = model(x)[0]
                if number and train:
                    output.float().sum().backward()
    missing = [name for name, parameter in model.named_parameters() if train and parameter.grad is None]
    return dict(waits=log.waits, copies=log.copies, before_blocks=begins[0], total=log.kernels.total(),
                a_block=max(end - begin for begin, end in zip(begins, begins[1:], strict=False)), no_gradient=missing)


def real_counts(settings: dict) -> tuple | None:
    """What the host learns of an image that has tokens of all sizes; None for the dense model, which asks nothing."""
    torch.manual_seed(0)
    x = torch.zeros(BATCH, 3, SIZE_PX, SIZE_PX)
    for index, image in enumerate(x):
        image[..., :SIZE_PX // 2 + 48 * index] = torch.randn(3, SIZE_PX, SIZE_PX // 2 + 48 * index)
    found, original = [None], TokenLayout._count

    def note(*args: object) -> tuple:
        found.append(original(*args))
        return found[-1]

    with mock.patch.object(TokenLayout, '_count', staticmethod(note)):
        APTEVA02(**settings).make_layout(x)
    return found[-1]


def main() -> None:
    torch.cuda.get_device_capability = lambda device=None: (8, 0)
    torch.cuda.is_bf16_supported = lambda *args, **options: True
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    F.scaled_dot_product_attention = plain_attention
    results = {}
    for train in (False, True):
        for kind in KINDS:
            for with_cls_token in (False, True):
                name = ' '.join(('train' if train else 'test', kind, 'class_token' if with_cls_token else 'windows'))
                results[name] = count(train, kind, with_cls_token)
                forget_constants()
    sys.stdout.write(json.dumps(results))
    sys.stdout.flush()
    os._exit(0)  # the devices are not there to be released


def forget_constants() -> None:
    """They are fake tensors of one mode, which no other takes."""
    from apt_dense.core import layers, position, rope
    for kept in (layers._keep_rates, position.resampling_matrix, rope._turns_of_patches, chooser._factors):
        kept.cache_clear()


if __name__ == '__main__':
    main()
