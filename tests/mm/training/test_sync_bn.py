"""CPUSyncBatchNorm in one process; test_distributed.py compares two."""
import pytest
import torch
import torch.distributed as dist
from mmengine.logging import MMLogger
from torch import nn

from apt_dense.mm.training.sync_bn import CPUSyncBatchNorm, replace_sync_batch_norm


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """What gloo does in a group of one."""
    monkeypatch.setattr(dist, 'all_reduce', lambda tensor, group=None: None)
    monkeypatch.setattr(dist, 'get_world_size', lambda: 1)


@pytest.mark.parametrize('options', [{}, dict(momentum=None), dict(affine=False), dict(track_running_stats=False),
                                     dict(eps=1e-3, momentum=0.3)])
@pytest.mark.parametrize('shape', [(6, 3), (2, 3, 5), (2, 3, 4, 5)])
def test_equals_batch_norm(options, shape):
    norms = CPUSyncBatchNorm(3, **options), [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d][len(shape) - 2](
        3, **options)
    inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(3)).add(2).requires_grad_() for _ in norms]
    weights = torch.randn(shape)
    outputs = []
    for norm, x in zip(norms, inputs, strict=True):
        for _ in range(2):
            outputs.append(norm(x))
            (outputs[-1] * weights).sum().backward()
        norm.eval()
        outputs.append(norm(x))
    for found, wanted in zip(outputs[:3], outputs[3:], strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norms[0].state_dict(), norms[1].state_dict(), atol=1e-6, rtol=1e-6)


def test_bfloat16_keeps_float32_statistics():
    norm = CPUSyncBatchNorm(3)
    x = torch.randn(64, 3, 8, 8) + 100
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    assert norm.running_mean.dtype == torch.float32
    torch.testing.assert_close(norm.running_mean, 0.1 * x.bfloat16().float().mean((0, 2, 3)))


def test_one_value_a_channel():
    with pytest.raises(ValueError, match=r'SyncBN of \(1, 3, 1, 1\) has one value a channel over all processes'):
        CPUSyncBatchNorm(3)(torch.zeros(1, 3, 1, 1))
    with pytest.raises(ValueError, match=r'input of 1 dimensions, wanted \(N, C, \.\.\.\)'):
        CPUSyncBatchNorm(3)(torch.zeros(3))


def test_replacing_keeps_names_and_values(caplog):
    MMLogger.get_instance('test_replacing').addHandler(caplog.handler)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.SyncBatchNorm(4, momentum=0.3)), nn.BatchNorm2d(4))
    state, weight = model.state_dict(), model[1][0].weight
    assert replace_sync_batch_norm(model) == 1
    assert type(model[1][0]) is CPUSyncBatchNorm and type(model[2]) is nn.BatchNorm2d
    assert model[1][0].weight is weight and model[1][0].momentum == 0.3
    assert model.state_dict().keys() == state.keys()
    model(torch.randn(2, 3, 4, 4))
    assert replace_sync_batch_norm(model) == 0
    assert [record.getMessage() for record in caplog.records] == [
        'SyncBN on CPUs: the batch statistics of 1 layers are synchronised by all_reduce over 1 processes']
