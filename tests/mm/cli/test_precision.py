"""The precision of a run, by the command and by the config."""
import pytest
import torch
from mmengine.config import Config

from apt_dense.mm.cli import precision
from apt_dense.mm.errors import LaunchError


def config(**settings) -> Config:
    return Config(dict(default_scope='mmdet', work_dir='work', **settings))


AMP = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(enabled=False))
FP16 = dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
BF16 = dict(type='BF16OptimWrapper')
PLAIN = dict(type='OptimWrapper')


@pytest.fixture
def device(monkeypatch):
    """device(name): mmengine's device is a CPU, 'cuda' (a GPU from Ampere on) or 'old cuda'."""
    def make(name: str) -> None:
        monkeypatch.setattr(precision, 'get_device', lambda: name.removeprefix('old '))
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda *_: (7, 5) if 'old' in name else (8, 0))

    before = (torch.get_autocast_dtype('cuda'), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    yield make
    torch.set_autocast_dtype('cuda', before[0])
    torch.set_float32_matmul_precision(before[1])
    torch.backends.cudnn.allow_tf32 = before[2]


@pytest.mark.parametrize(('name', 'amp', 'wrapper', 'expected'), [
    ('cuda', False, PLAIN, PLAIN), ('cuda', False, AMP, AMP), ('cuda', False, BF16, BF16),
    ('cuda', True, PLAIN, AMP), ('cuda', True, {}, AMP), ('cuda', True, BF16, BF16),
    ('cuda', True, dict(type='AmpOptimWrapper', dtype='float16'), FP16),
    ('cuda', False, dict(type='AmpOptimWrapper'), dict(type='AmpOptimWrapper', loss_scale='dynamic')),
    ('cuda', True, dict(AMP, loss_scale=512.), dict(AMP, loss_scale=512.)),
    ('cuda', False, dict(type='AmpOptimWrapper', dtype='bfloat16'), AMP),
    ('old cuda', True, PLAIN, FP16), ('old cuda', True, AMP, AMP),
    ('cpu', False, PLAIN, PLAIN), ('cpu', False, {}, {}), ('cpu', False, BF16, BF16),
    ('cpu', True, PLAIN, BF16), ('cpu', True, {}, BF16), ('cpu', True, BF16, BF16),
    ('cpu', False, dict(FP16, use_fsdp=False), BF16), ('cpu', True, AMP, BF16),
    ('cpu', False, dict(type='Other', loss_scale=1), dict(type='Other', loss_scale=1)),
])
def test_mixed_precision(device, capsys, name, amp, wrapper, expected):
    device(name)
    rest = dict(optimizer=dict(type='AdamW', lr=0.1), clip_grad=dict(max_norm=1.0))
    cfg = config(optim_wrapper=dict(wrapper, **rest))
    precision.set_amp(cfg, amp)
    assert cfg.optim_wrapper == dict(expected, **rest)
    changed = name == 'cpu' and (amp or wrapper.get('type') == 'AmpOptimWrapper')
    assert ('no GPU: mixed precision is bfloat16' in capsys.readouterr().out) == changed


def test_amp_does_not_replace_other_wrappers():
    cfg = config(optim_wrapper=dict(type='OptimWrapperDict'))
    with pytest.raises(LaunchError, match=r"--amp with optim_wrapper\.type='OptimWrapperDict'.*remove --amp"):
        precision.set_amp(cfg, True)


@pytest.mark.parametrize(('name', 'amp', 'wrapper', 'loop', 'fp16', 'dtype'), [
    ('cuda', True, PLAIN, {}, True, torch.bfloat16), ('old cuda', True, PLAIN, {}, True, torch.float16),
    ('cuda', False, FP16, dict(type='ValLoop'), True, torch.float16), ('cuda', False, AMP, {}, True, torch.bfloat16),
    ('cpu', True, PLAIN, {}, True, None), ('cpu', False, AMP, {}, True, None),
    ('cuda', True, PLAIN, dict(fp16=False), False, torch.bfloat16),  # the config says so
    ('cuda', False, PLAIN, dict(type='ValLoop'), None, None), ('cpu', False, PLAIN, {}, None, None),
    ('cuda', True, PLAIN, dict(type='OtherLoop'), None, None)])
def test_validation_in_the_precision_of_the_training(device, name, amp, wrapper, loop, fp16, dtype):
    device(name)
    torch.set_autocast_dtype('cuda', torch.float32)
    cfg = config(optim_wrapper=dict(wrapper), val_cfg=dict(dict(type='ValLoop'), **loop))
    precision.set_amp(cfg, amp)
    assert cfg.val_cfg.get('fp16') is fp16
    assert torch.get_autocast_dtype('cuda') == (dtype or torch.float32)


@pytest.mark.parametrize(('name', 'dtype'), [('cuda', torch.bfloat16), ('old cuda', torch.float16), ('cpu', None)])
def test_amp_in_a_test(device, name, dtype):
    device(name)
    torch.set_autocast_dtype('cuda', torch.float32)
    cfg = config(test_cfg=dict(type='TestLoop'))
    precision.set_test_amp(cfg)
    assert cfg.test_cfg.fp16 is True and torch.get_autocast_dtype('cuda') == (dtype or torch.float32)


@pytest.mark.parametrize('loop', [dict(type='OtherLoop'), dict(fp16=False), None])
def test_amp_in_a_test_that_cannot(loop):
    with pytest.raises(LaunchError, match='--amp with test_cfg=.*it sets fp16=True of a TestLoop, remove --amp'):
        precision.set_test_amp(config(test_cfg=loop))


@pytest.mark.parametrize(('settings', 'wanted', 'tf32'), [
    ({}, 'high', True), (dict(float32_matmul_precision='high'), 'high', True),
    (dict(float32_matmul_precision='highest'), 'highest', False)])
def test_float32_on_a_gpu(device, settings, wanted, tf32):
    torch.set_float32_matmul_precision('highest')
    device('cpu')
    precision.set_float32_precision(config(**settings))
    assert torch.get_float32_matmul_precision() == 'highest' and torch.backends.cudnn.allow_tf32
    device('cuda')
    precision.set_float32_precision(config(**settings))
    assert torch.get_float32_matmul_precision() == wanted and torch.backends.cudnn.allow_tf32 == tf32


def test_an_unknown_precision_of_float32():
    with pytest.raises(LaunchError, match="float32_matmul_precision='tf32': choose one of .*'high' is TF32"):
        precision.set_float32_precision(config(float32_matmul_precision='tf32'))
