"""The precision of a run, by the command and by the config."""
import pytest
from mmengine.config import Config

from apt_dense.mm.cli import precision
from apt_dense.mm.errors import LaunchError


def config(**settings) -> Config:
    return Config(dict(default_scope='mmdet', work_dir='work', **settings))


AMP = dict(type='AmpOptimWrapper', loss_scale='dynamic')
BF16 = dict(type='BF16OptimWrapper')
PLAIN = dict(type='OptimWrapper')


@pytest.mark.parametrize(('device', 'amp', 'wrapper', 'expected'), [
    ('cuda', False, PLAIN, PLAIN), ('cuda', False, AMP, AMP), ('cuda', False, BF16, BF16),
    ('cuda', True, PLAIN, AMP), ('cuda', True, {}, AMP), ('cuda', True, BF16, BF16),
    ('cuda', True, dict(type='AmpOptimWrapper', loss_scale=512.), dict(type='AmpOptimWrapper', loss_scale=512.)),
    ('cpu', False, PLAIN, PLAIN), ('cpu', False, {}, {}), ('cpu', False, BF16, BF16),
    ('cpu', True, PLAIN, BF16), ('cpu', True, {}, BF16), ('cpu', True, BF16, BF16),
    ('cpu', False, dict(AMP, dtype='float16', use_fsdp=False), BF16), ('cpu', True, AMP, BF16),
    ('cpu', False, dict(type='Other', loss_scale=1), dict(type='Other', loss_scale=1)),
])
def test_mixed_precision(monkeypatch, capsys, device, amp, wrapper, expected):
    monkeypatch.setattr(precision, 'get_device', lambda: device)
    rest = dict(optimizer=dict(type='AdamW', lr=0.1), clip_grad=dict(max_norm=1.0))
    cfg = config(optim_wrapper=dict(wrapper, **rest))
    precision.set_amp(cfg, amp)
    assert cfg.optim_wrapper == dict(expected, **rest)
    changed = device == 'cpu' and (amp or wrapper.get('type') == 'AmpOptimWrapper')
    assert ('no GPU: mixed precision is bfloat16' in capsys.readouterr().out) == changed


def test_amp_does_not_replace_other_wrappers():
    cfg = config(optim_wrapper=dict(type='OptimWrapperDict'))
    with pytest.raises(LaunchError, match=r"--amp with optim_wrapper\.type='OptimWrapperDict'.*remove --amp"):
        precision.set_amp(cfg, True)
