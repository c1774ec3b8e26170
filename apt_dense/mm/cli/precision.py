"""The precision of a run: mixed precision of training, validation and test, and of float32 products on a GPU."""
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log

from apt_dense.mm.errors import LaunchError

MIXED = ('AmpOptimWrapper', 'BF16OptimWrapper')
LOOPS = {'val_cfg': 'ValLoop', 'test_cfg': 'TestLoop'}
FLOAT32_PRECISIONS = ('highest', 'high', 'medium')


def half_dtype() -> torch.dtype:
    """What --amp computes in: bfloat16, which has float32's range, and float16 on GPUs before Ampere.

    (torch.cuda.is_bf16_supported counts older GPUs too, which only imitate it.)
    """
    older = get_device() == 'cuda' and torch.cuda.get_device_capability() < (8, 0)
    return torch.float16 if older else torch.bfloat16


def set_amp(cfg: Config, amp: bool) -> None:
    """Choose the optimiser wrapper of mixed precision, mmengine's AmpOptimWrapper, on a CPU BF16OptimWrapper; and
    validate in the precision of the training.

    A config that asks for AmpOptimWrapper itself is adapted to a CPU in the same way.  bfloat16 gets no loss scaler,
    unless the config names one.  ``val_cfg.fp16`` in the config is kept.

    Args:
        amp: True if the command asks for mixed precision.

    Raises:
        LaunchError: if the config's wrapper is of a type that --amp cannot replace.
    """
    wrapper, kind = cfg.optim_wrapper, cfg.optim_wrapper.get('type', 'OptimWrapper')
    if amp and kind not in ('OptimWrapper', *MIXED):
        raise LaunchError(f'--amp with optim_wrapper.type={kind!r}: it replaces OptimWrapper only, remove --amp')
    if get_device() == 'cpu' and (amp or kind == 'AmpOptimWrapper'):
        for name in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(name, None)
        wrapper.type = 'BF16OptimWrapper'
        print_log('no GPU: mixed precision is bfloat16 autocast without a loss scaler')
    elif amp and kind != 'BF16OptimWrapper':
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('dtype', str(half_dtype()).removeprefix('torch.'))
    kind = wrapper.get('type', 'OptimWrapper')
    if kind == 'AmpOptimWrapper':
        # A disabled scaler: one of 1.0 would still wait for the GPU and look for infinities in each step.
        wrapper.setdefault('loss_scale', dict(enabled=False) if _is_bf16(wrapper) else 'dynamic')
    if kind in MIXED:
        bf16 = kind == 'BF16OptimWrapper' or _is_bf16(wrapper)
        _set_loop(cfg, 'val_cfg', torch.bfloat16 if bf16 else torch.float16)


def set_test_amp(cfg: Config) -> None:
    """Test under autocast, as ``half_dtype`` says.

    Raises:
        LaunchError: if the config's test loop is not mmengine's.
    """
    if not _set_loop(cfg, 'test_cfg', half_dtype()) or not cfg.test_cfg.fp16:
        raise LaunchError(f'--amp with test_cfg={cfg.get("test_cfg")}: it sets fp16=True of a TestLoop, remove --amp '
                          'or set test_cfg')


def _is_bf16(wrapper: dict) -> bool:
    return wrapper.get('dtype') in ('bfloat16', torch.bfloat16)


def _set_loop(cfg: Config, name: str, dtype: torch.dtype) -> bool:
    """Let mmengine's loop of this name run under autocast, unless the config says; False if it is another loop."""
    loop = cfg.get(name)
    if not loop or loop.get('type', LOOPS[name]) != LOOPS[name]:
        return False
    loop.setdefault('fp16', True)
    if get_device() == 'cuda':
        torch.set_autocast_dtype('cuda', dtype)  # what mmengine's loops take, whatever the name of their option
    return True


def set_float32_precision(cfg: Config) -> None:
    """Compute float32 products and convolutions on a GPU as ``cfg.float32_matmul_precision`` says.

    'high', the default, is TF32: float32's range with ten bits after the point, on tensor cores; 'highest' is float32.
    Nothing changes on a CPU.

    Raises:
        LaunchError: for an unknown value.
    """
    value = cfg.get('float32_matmul_precision', 'high')
    if value not in FLOAT32_PRECISIONS:
        raise LaunchError(f"float32_matmul_precision={value!r}: choose one of {FLOAT32_PRECISIONS}; 'high' is TF32")
    if get_device() == 'cuda':
        torch.set_float32_matmul_precision(value)
        torch.backends.cudnn.allow_tf32 = value != 'highest'
