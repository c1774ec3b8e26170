"""bfloat16 and several processes on a CPU."""
import socket
from contextlib import nullcontext
from datetime import timedelta
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model.wrappers import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from torch import nn

from apt_dense.mm import compat
from tests.mm.compat.toys import train_toy


def test_bf16_wrapper_trains_under_autocast():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1).to(get_device()), torch.randn(16, 3).to(get_device())
    wrapper = build_optim_wrapper(model, dict(type='BF16OptimWrapper', optimizer=dict(type='AdamW', lr=0.05)))
    losses = []
    for _ in range(40):
        with wrapper.optim_context(model):
            output = model(x)
            loss = (output - 1).square().mean()
        wrapper.update_params(loss)
        losses.append(loss.item())
        assert output.dtype == torch.bfloat16
    assert model(x).dtype == model.weight.dtype == torch.float32
    assert losses[-1] < 0.2 * losses[0]


def test_bf16_wrapper_accumulates_gradients():
    model = nn.Linear(3, 1).to(get_device())
    model.no_sync = mock.Mock(side_effect=nullcontext)  # as a data-parallel wrapper has
    wrapper = compat.BF16OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 4)
    before, changed = model.weight.detach().clone(), []
    for _ in range(4):
        with wrapper.optim_context(model):
            loss = model(torch.ones(2, 3, device=get_device())).sum()
        wrapper.update_params(loss)
        changed.append(not torch.equal(model.weight, before))
        before = model.weight.detach().clone()
    assert changed == [False, True, False, True]
    assert model.no_sync.call_count == 2


def test_bf16_wrapper_asks_mmengine_for_the_device(monkeypatch):
    seen = []
    monkeypatch.setattr(compat.cpu, 'get_device', lambda: 'npu')
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: seen.append((args, kwargs)) or nullcontext())
    model = nn.Linear(3, 1)
    with compat.BF16OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1)).optim_context(model):
        pass
    assert seen == [(('npu',), {'dtype': torch.bfloat16})]


@pytest.mark.skipif(get_device() != 'cpu', reason='mmengine trains on this device')
def test_data_parallel_training_on_a_cpu(tmp_path, monkeypatch):
    """For real, in a group of one process, as torchrun would start it."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        port = server.getsockname()[1]
    for name, value in dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR='127.0.0.1', MASTER_PORT=port,
                            OMP_NUM_THREADS=1, MKL_NUM_THREADS=1).items():
        monkeypatch.setenv(name, str(value))
    cfg = Config(dict(launcher='pytorch', find_unused_parameters=True))
    try:
        compat.setup_cpu_ddp(cfg)
        compat.setup_cpu_ddp(cfg)  # a second time is nothing
        assert torch.distributed.get_backend() == 'gloo'
        runner = train_toy(tmp_path, max_iters=2, launcher='pytorch', cfg=cfg)
        assert isinstance(runner.model, MMDistributedDataParallel)
        assert runner.model.device_ids is None and runner.model.find_unused_parameters
        assert runner.iter == 2
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture
def groups(monkeypatch):
    """The arguments of each process group made; none is made."""
    made = []
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda *args, **kwargs: made.append((args, kwargs)))
    monkeypatch.setattr(compat.cpu, 'get_device', lambda: 'cpu')
    return made


@pytest.mark.parametrize(('settings', 'expected'), [
    ({}, dict(find_unused_parameters=False)),
    (dict(find_unused_parameters=True), dict(find_unused_parameters=True)),
    (dict(model_wrapper_cfg=None), dict(find_unused_parameters=False)),
    (dict(find_unused_parameters=True, model_wrapper_cfg=dict(type='Other', find_unused_parameters=False, bucket=3)),
     dict(type='Other', find_unused_parameters=False, bucket=3)),
])
def test_cpu_ddp_fills_in_what_the_config_leaves_open(groups, settings, expected):
    cfg = Config(dict(launcher='pytorch', **settings))
    compat.setup_cpu_ddp(cfg)
    assert groups == [(('gloo',), {})]
    assert cfg.model_wrapper_cfg == dict(
        dict(type='CPUDistributedDataParallel', device_ids=None, broadcast_buffers=False), **expected)


def test_cpu_ddp_waits_as_long_as_the_config_says(groups):
    compat.setup_cpu_ddp(Config(dict(launcher='pytorch', env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=7200)))))
    assert groups == [(('gloo',), {'timeout': timedelta(hours=2)})]


@pytest.mark.parametrize(('settings', 'device'), [
    ({}, 'cpu'), (dict(launcher='none'), 'cpu'), (dict(launcher='pytorch'), 'cuda'), (dict(launcher='slurm'), 'cuda')])
def test_nothing_to_set_up_without_launcher_or_with_a_gpu(groups, monkeypatch, settings, device):
    monkeypatch.setattr(compat.cpu, 'get_device', lambda: device)
    cfg = Config(dict(settings))
    compat.setup_cpu_ddp(cfg)
    assert not groups and cfg.to_dict() == settings


@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_other_launchers_want_a_gpu(groups, launcher):
    with pytest.raises(ValueError, match=f"launcher '{launcher}' without a GPU: .*--launcher pytorch"):
        compat.setup_cpu_ddp(Config(dict(launcher=launcher)))
    assert not groups
