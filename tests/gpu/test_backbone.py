"""A small backbone on the GPU: against a CPU, against itself, in one process of DDP, and its memory."""
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from apt_dense.benchmark.cases import Case
from apt_dense.benchmark.inputs import build_batch
from apt_dense.benchmark.measure import deterministic_algorithms, peak_memory
from apt_dense.core.eva02 import APTEVA02
from tests import devices

CASES = {'windows': Case('Ti', 'det', 512, kept=(0.6, 0.3), depth=4),
         'class_token': Case('Ti', 'seg', 256, kept=(0.8, 0.4), depth=4)}


@pytest.fixture(params=CASES)
def case(request, device) -> Case:
    return replace(CASES[request.param], device=device, mode='train')


def step(case: Case, model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The last map and all gradients of one training step."""
    model.zero_grad()
    torch.manual_seed(0)
    with case.autocast():
        out = model(x)[-1]
    out.float().square().mean().backward()
    return [out.detach().float(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def distance(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest relative error (L2)."""
    return max(((a.cpu() - b.cpu()).norm() / b.cpu().norm().clamp(min=1e-6)).item()
               for a, b in zip(found, wanted, strict=True))


@devices.whole_float32()
def test_float32_is_that_of_a_cpu(case):
    model, x = case.build_model(dense=False), case.build_input()
    found = step(case, model, x)
    assert distance(found, step(replace(case, device='cpu'), model.cpu(), x.cpu())) < 1e-3


@devices.whole_float32()
def test_bfloat16_is_near_float32(case):
    model, x = case.build_model(dense=False), case.build_input()
    wanted, found = step(case, model, x), step(replace(case, dtype='bfloat16'), model, x)
    assert all(part.isfinite().all() for part in found)
    assert distance(found[:1], wanted[:1]) < 0.05


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_deterministic_steps_repeat_bit_for_bit(case, dtype):
    case = replace(case, dtype=dtype)
    model, x = case.build_model(dense=False), case.build_input()
    with deterministic_algorithms(True):
        first, second = step(case, model, x), step(case, model, x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize('thresholds', [(-1.0,) * 3, (1.0,) * 3, (99.0,) * 3], ids=['fine', 'mixed', 'coarse'])
def test_ddp_of_one_process_has_the_same_gradients(case, thresholds, tmp_path):
    """Also where a scale has no token: no parameter is unused, and NCCL waits for none."""
    model, x = case.build_model(dense=False), case.build_input()
    model.thresholds = thresholds
    wanted = step(case, model, x)
    torch.distributed.init_process_group('nccl' if case.on_gpu else 'gloo', rank=0, world_size=1,
                                         init_method=f'file://{tmp_path / "store"}')
    try:
        wrapped = DistributedDataParallel(model)
        for _ in range(2):  # the second step tells whether the first left a gradient out
            found = step(case, wrapped, x)
    finally:
        torch.distributed.destroy_process_group()
    assert len(found) == len(wanted) and distance(found, wanted) < 1e-3


@pytest.mark.parametrize(('mode', 'share'), [('forward', 1.0), ('train', 0.9)])
def test_apt_takes_less_memory_than_the_dense_twin(mode, share, device):
    case = Case('Ti', 'det', 1024, kept=(0.5,), depth=4, mode=mode, dtype='bfloat16', device=device)
    apt, dense = peak_memory(case, 'apt')['extra'], peak_memory(case, 'dense')['extra']
    assert 0 < apt < share * dense


@pytest.mark.parametrize('options', [dict(graph_tokens=256), dict(pad_mlp=True), dict(keep_casts=True)], ids=str)
@torch.inference_mode()
def test_options_of_inference_change_nothing(options, device):
    """CUDA graphs are captured for three buckets, replayed, and given other images."""
    def build(**more: object) -> APTEVA02:
        torch.manual_seed(0)
        return APTEVA02(img_size=512, embed_dims=192, depth=4, num_heads=3, global_block_indexes=(1, 3),
                        num_scales=4, thresholds=(1.0,) * 3, **more).eval().to(device)

    plain, other = build(), build(**options)
    batches = [build_batch(512, (kept,), first_seed=seed).to(device)
               for seed, kept in enumerate((0.9, 0.6, 0.3, 0.9, 0.6, 0.58))]
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        for x in batches:
            assert distance([part.float() for part in other(x)], [part.float() for part in plain(x)]) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['forward', 'train'])
def test_compiled_is_near_eager(case, mode):
    case = replace(case, mode=mode, dtype='bfloat16')
    results = []
    for compiled in (False, True):
        model = replace(case, compiled=compiled).build_model(dense=False)
        if mode == 'train':
            results.append(step(case, model, case.build_input())[:1])
        else:
            with torch.inference_mode():
                results.append([model(case.build_input())[-1].float()])
    assert distance(*results) < 0.05
