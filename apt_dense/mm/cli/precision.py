"""The precision of a run."""
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log

from apt_dense.mm.errors import LaunchError


def set_amp(cfg: Config, amp: bool) -> None:
    """Choose the optimiser wrapper of mixed precision: mmengine's AmpOptimWrapper, on a CPU BF16OptimWrapper.

    A config that asks for AmpOptimWrapper itself is adapted to a CPU in the same way.

    Args:
        amp: True if the command asks for mixed precision.

    Raises:
        LaunchError: if the config's wrapper is of a type that --amp cannot replace.
    """
    wrapper, kind = cfg.optim_wrapper, cfg.optim_wrapper.get('type', 'OptimWrapper')
    if amp and kind not in ('OptimWrapper', 'AmpOptimWrapper', 'BF16OptimWrapper'):
        raise LaunchError(f'--amp with optim_wrapper.type={kind!r}: it replaces OptimWrapper only, remove --amp')
    if get_device() == 'cpu' and (amp or kind == 'AmpOptimWrapper'):
        for name in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(name, None)
        wrapper.type = 'BF16OptimWrapper'
        print_log('no GPU: mixed precision is bfloat16 autocast without a loss scaler')
    elif amp and kind != 'BF16OptimWrapper':
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
