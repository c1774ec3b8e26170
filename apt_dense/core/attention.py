"""Attention inside contiguous runs of packed tokens: three backends behind one function."""
import contextlib
import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from apt_dense.core.arguments import check_choice
from apt_dense.core.runs import Runs

BACKENDS = ('auto', 'flash_attn', 'torch_varlen', 'fa3', 'fa4', 'sdpa')
KERNELS = ('flash_attn', 'torch_varlen')  # on CUDA, the one that 'auto' prefers first
# Implementations that torch can put behind its variable-length attention: their names there, packages, and the major
# compute capabilities of the GPUs that they run on.
IMPLEMENTATIONS = {
    'fa3': ('FA3', 'flash-attention-3 (built from the folder hopper/ of flash-attention)', (9,)),
    'fa4': ('FA4', 'flash-attn-4 (pip install --pre flash-attn-4)', (9, 10))}
PACKAGES = ('flash_attn', 'flash_attn_interface', 'torch.nn.attention.varlen')
OPERATOR = '_flash_attention_forward'  # of aten, behind torch's varlen_attn
FLASH_ARGUMENTS = ('query', 'key', 'value', 'cum_seq_q', 'cum_seq_k', 'max_q', 'max_k', 'dropout_p', 'is_causal',
                   'return_debug_mask')
HALF_DTYPES = (torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256  # of both CUDA kernels
EXTRA_CHANNELS = 8  # of proportional attention
LEAST_SIZE = 1e-20  # that a row counts as, so that its logarithm has a gradient
WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def check_backend(name: str) -> None:
    """Raise ValueError for an unknown backend."""
    check_choice('attn_backend', name, BACKENDS)


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, runs: Runs, backend: str = 'auto') -> Tensor:
    """Scaled dot-product attention of each run among itself.

    Args:
        q, k, v: (T, heads, head_dim), one dtype, packed as ``runs`` says.
        runs: the windows or images of the layout.
        backend: 'flash_attn' (package flash-attn) or 'torch_varlen' (torch.nn.attention.varlen), both CUDA, fp16 or
            bf16; 'fa3' or 'fa4', torch_varlen by FlashAttention 3 or 4, which torch then takes in the whole process
            (``torch.nn.attention.activate_flash_attention_impl``); 'sdpa', which runs everywhere, run by run; 'auto',
            the first of flash_attn, torch_varlen and sdpa that is installed, loads, and supports the device, dtype and
            head size; its choice is logged once.  Where all runs have equal length, each of them is one batched SDPA;
            in half precision on GPUs from Hopper on, only where nothing is merged: cuDNN, which torch takes there,
            makes a plan for each new length, in tens of milliseconds.

    Returns:
        (T, heads, head_dim).

    Raises:
        ValueError: for an unknown backend, or one that does not support these tensors.
        ImportError: if the backend, asked for by name, is not installed or does not load; it says why.
    """
    check_backend(backend)
    if backend == 'auto':
        backend = 'sdpa' if _is_batch(q, runs) else _fastest(q)
    elif backend != 'sdpa':
        _require(backend, q)
        if _is_batch(q, runs):
            backend = 'sdpa'
    return _FUNCTIONS[backend](q, k, v, runs)


def log_sizes(sizes: Tensor) -> Tensor:
    """Of sizes from 0 on, their logarithms, which are finite and have a gradient."""
    return sizes.clamp(min=LEAST_SIZE).log()


def size_channels(logs: Tensor, dtype: torch.dtype) -> Tensor:
    """(T,) logarithms of the rows' sizes -> (T, 1, EXTRA_CHANNELS): these and zeros."""
    return F.pad(logs.to(dtype)[:, None, None], (0, EXTRA_CHANNELS - 1))


def with_size_channels(q: Tensor, k: Tensor, v: Tensor, channels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Have attention count each key as often as its row's size says.

    The logarithm of the size is added to the logits by more channels, so that the fused kernels serve: they take no
    bias, and want a multiple of eight channels.

    Args:
        q, k, v: (T, heads, head_dim).
        channels: of ``size_channels``.

    Returns:
        The three with EXTRA_CHANNELS more, for ``varlen_attention``; these are zeros in its result.

    Source: ToMe's proportional attention.
    """
    heads, dims = q.shape[1:]
    wide = dims + EXTRA_CHANNELS
    # The kernels divide by the root of the width.
    roots = q.new_full((1, 1, EXTRA_CHANNELS), wide**0.5).expand(len(q), heads, -1)
    channels = channels.to(k.dtype).expand(-1, heads, -1)
    return torch.cat([q * (wide / dims)**0.5, roots], -1), torch.cat([k, channels], -1), F.pad(v, (0, EXTRA_CHANNELS))


def takes_lengths_from_device(q: Tensor, backend: str) -> bool:
    """Whether attention over unequal runs of such tensors is one launch, for which the host need not know lengths."""
    if backend == 'sdpa' or _cuda_kernel_obstacle(q) is not None:
        return False
    return backend != 'auto' or any(_kernel(name).function is not None for name in KERNELS)


def _is_batch(q: Tensor, runs: Runs) -> bool:
    """Whether the runs are best computed as one batch of plain attention."""
    return runs.equal and (runs.whole or not _plans_by_length(q))


def _plans_by_length(q: Tensor) -> bool:
    """Whether torch's plain attention begins with cuDNN, which makes a plan for each new length."""
    return (q.device.type == 'cuda' and q.dtype in HALF_DTYPES and
            torch.cuda.get_device_capability(q.device) >= (9, 0))


def _fastest(q: Tensor) -> str:
    """The fastest backend that supports the tensor."""
    obstacle = _cuda_kernel_obstacle(q)
    if obstacle:
        _log_choice('sdpa', f", run by run: {' and '.join(KERNELS)} take none of these tensors, {obstacle}")
        return 'sdpa'
    backends = (*KERNELS, 'sdpa')
    backend = next((name for name in KERNELS if _kernel(name).function is not None), 'sdpa')
    better = {name: _kernel(name) for name in backends[:backends.index(backend)]}
    why = '; '.join(f'{name} {kernel.obstacle}' for name, kernel in better.items())
    broken = any(kernel.broken for kernel in better.values())
    _log_choice(backend, f': {why}' if why else '', logging.WARNING if broken else logging.INFO)
    return backend


@functools.cache  # once in a process, not in every block
def _log_choice(backend: str, why: str, level: int = logging.INFO) -> None:
    logging.getLogger(__name__).log(level, f"attn_backend='auto' takes {backend!r}{why}")


def _cuda_kernel_obstacle(q: Tensor) -> str | None:
    """What keeps the two CUDA backends from these tensors, or None."""
    if q.device.type != 'cuda':
        return f'they are on {q.device.type}'
    if q.dtype not in HALF_DTYPES:
        return f'their dtype is {q.dtype}'
    if q.shape[-1] > MAX_HEAD_DIM or q.shape[-1] % 8:
        return f'their head_dim is {q.shape[-1]}'
    if torch.cuda.get_device_capability(q.device) < (8, 0):
        return f'the GPU, {torch.cuda.get_device_name(q.device)}, is older than Ampere'
    return None


def _require(backend: str, q: Tensor) -> None:
    """Raise unless a CUDA backend is usable and supports the tensor."""
    kernel = _kernel(backend)
    if kernel.function is None and backend == 'flash_attn':
        raise ImportError(f"attn_backend='flash_attn' needs the package flash-attn, which {kernel.obstacle}: set "
                          "attn_backend='auto' or 'torch_varlen' (torch's own, from torch 2.10 on), or build it for "
                          f'torch {torch.__version__}: pip install flash-attn --no-build-isolation')
    if kernel.function is None and backend in IMPLEMENTATIONS:
        raise ImportError(f'attn_backend={backend!r} needs {IMPLEMENTATIONS[backend][1]}, which {kernel.obstacle}, and '
                          'a torch with torch.nn.attention.activate_flash_attention_impl (2.13 has it, this is '
                          f"{torch.__version__}): set attn_backend='auto' or 'torch_varlen', torch's own kernel")
    if kernel.function is None:
        raise ImportError(f"attn_backend='torch_varlen' needs torch >= 2.10, this is {torch.__version__}, where it "
                          f"{kernel.obstacle}: set attn_backend='auto'")
    obstacle = _cuda_kernel_obstacle(q)
    if obstacle:
        raise ValueError(f"attn_backend='{backend}' needs float16 or bfloat16 tensors on a GPU from Ampere on, with a "
                         f"head_dim that is a multiple of 8 and at most {MAX_HEAD_DIM}, but {obstacle}: use autocast, "
                         "or attn_backend='auto'")
    majors = IMPLEMENTATIONS[backend][2] if backend in IMPLEMENTATIONS else ()
    if majors and torch.cuda.get_device_capability(q.device)[0] not in majors:
        raise ValueError(f'attn_backend={backend!r} needs a GPU of compute capability '
                         f'{" or ".join(f"{major}.x" for major in majors)}, this one, '
                         f"{torch.cuda.get_device_name(q.device)}, is another: set attn_backend='auto'")


class _Kernel(NamedTuple):
    """A CUDA backend's function, or None and why there is none."""
    function: Callable[..., Tensor] | None
    obstacle: str = ''
    broken: bool = False  # it is there, and does not load


@functools.cache  # every block asks
def _kernel(backend: str) -> _Kernel:
    """Import a CUDA backend.

    A folder of that name, flash-attn-4 (which has other functions under the same name) and a library that was built for
    another torch are found by a search too, so only the import tells.
    """
    try:
        if backend == 'flash_attn':
            from flash_attn import flash_attn_varlen_func as function
        else:
            from torch.nn.attention.varlen import varlen_attn as function
            if backend in IMPLEMENTATIONS:
                _activate(IMPLEMENTATIONS[backend][0])
            elif function.__module__ == PACKAGES[-1]:  # torch's own, and not another in its place
                function = _operator_of_varlen() or function
    except Exception as error:  # a library that does not load raises what it likes
        if isinstance(error, ModuleNotFoundError) and error.name in PACKAGES:
            return _Kernel(None, 'is not installed')
        said = (str(error).splitlines() or [''])[0]
        return _Kernel(None, f'does not load ({type(error).__name__}: {said})', broken=True)
    return _Kernel(function)


def _operator_of_varlen() -> Callable[..., Tensor] | None:
    """What torch's ``varlen_attn`` computes, by the operator that it calls; None if this torch's takes other arguments.

    The function around it is Python that allocates and checks, forwards and backwards: in a training step 640 us a
    block on the host of an H200, three times what the operator takes there, and more than the kernel takes on the GPU.
    """
    overloads = getattr(torch.ops.aten, OPERATOR, None)
    if overloads is None:
        return None
    operator = overloads.default
    given = tuple(argument.name for argument in operator._schema.arguments if not argument.kwarg_only)
    if given != FLASH_ARGUMENTS:
        return None
    return lambda *arguments: operator(*arguments, 0.0, False, False)[0]


def _activate(name: str) -> None:
    """Put an implementation behind torch's variable-length attention, for the whole process."""
    from torch.nn.attention import activate_flash_attention_impl, current_flash_attention_impl
    current = current_flash_attention_impl()
    if current not in (None, name):
        raise RuntimeError(f'{current} is active, and there is one for the whole process')
    activate_flash_attention_impl(name)


def _flash_attn(q: Tensor, k: Tensor, v: Tensor, runs: Runs) -> Tensor:
    seqlens, longest = runs.cu_seqlens, runs.max_seqlen
    return _kernel('flash_attn').function(q, k, v, seqlens, seqlens, longest, longest,
                                          deterministic=torch.are_deterministic_algorithms_enabled())


def _torch_varlen(q: Tensor, k: Tensor, v: Tensor, runs: Runs) -> Tensor:
    # Only the first seven arguments: those after them changed between torch 2.10 and 2.12.
    seqlens, longest = runs.cu_seqlens, runs.max_seqlen
    return _kernel('torch_varlen').function(q, k, v, seqlens, seqlens, longest, longest)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, runs: Runs) -> Tensor:
    plans = not runs.whole and _plans_by_length(q)
    with sdpa_kernel(WITHOUT_PLANS) if plans else contextlib.nullcontext():
        return _plain_attention(q, k, v, runs)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, runs: Runs) -> Tensor:
    if runs.equal:
        q, k, v = (part.unflatten(0, (len(runs.lengths), -1)).transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
    parts = zip(*(part.transpose(0, 1).split(runs.lengths, 1) for part in (q, k, v)), strict=True)
    # A batch dimension of 1: without it torch takes the slow, unfused path.  Back to (tokens, heads, ...) before the
    # parts are joined: that is how the fused kernels lay their output out in memory.
    return torch.cat([F.scaled_dot_product_attention(*(part[None] for part in run))[0].transpose(0, 1)
                      for run in parts])


_FUNCTIONS = {'flash_attn': _flash_attn, 'sdpa': _sdpa, **dict.fromkeys(
    ('torch_varlen', *IMPLEMENTATIONS), _torch_varlen)}
