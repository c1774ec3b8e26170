"""The device of the tests: APT_TEST_DEVICE."""
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import torch
from torch import Tensor

VARIABLE = 'APT_TEST_DEVICE'
NAME = os.environ.get(VARIABLE, '')


def obstacle(name: str) -> str | None:
    """Why tests cannot run on the device of this name, or None."""
    try:
        device = torch.device(name)
    except RuntimeError:
        return f'{VARIABLE}={name!r} is no device of torch: set it to cpu, cuda or cuda:0'
    if device.type == 'cuda' and not torch.cuda.is_available():
        return f'{VARIABLE}={name!r}, but torch {torch.__version__} finds no GPU: unset it, or run where a GPU is'
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        return f'{VARIABLE}={name!r}, but torch finds {torch.cuda.device_count()} GPU(s): choose one of these'
    if device.type not in ('cpu', 'cuda', torch._C._get_privateuse1_backend_name()):
        return f'{VARIABLE}={name!r}: nothing here runs on {device.type}: set it to cpu, cuda or cuda:0'
    return None


@contextmanager
def whole_float32() -> Iterator[None]:
    """Inside, products and convolutions of float32 are no TF32: the tolerances of the tests are for float32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision('highest')
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def drawn_on_cpu(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compute a tensor on the CPU, whose random numbers are those that the tests know, and send it to the device."""
    @wraps(function)
    def wrapped(*args, **kwargs) -> Tensor:
        device = torch.get_default_device()
        with torch.device('cpu'):
            found = function(*(part.cpu() if isinstance(part, Tensor) else part for part in args), **kwargs)
        return found.to(device)
    return wrapped
