"""The backends of attention against each other."""
import pytest
import torch

from apt_dense.core.attention import IMPLEMENTATIONS, varlen_attention
from apt_dense.core.runs import Runs

LENGTHS = {'unequal': (500, 1, 900, 33, 64), 'equal': (256,) * 4, 'one_run': (717,), 'runs_of_one': (1,) * 5}


@pytest.fixture(params=['auto', 'sdpa', 'torch_varlen', 'flash_attn', *IMPLEMENTATIONS])
def backend(request, device):
    """Those that are installed and run on this GPU."""
    probe = torch.zeros(1, 1, 64, device=device, dtype=torch.bfloat16)
    try:
        varlen_attention(probe, probe, probe, Runs.from_lengths((1,), torch.device(device)), request.param)
    except (ImportError, ValueError) as error:
        pytest.skip(str(error))
    yield request.param
    if request.param in IMPLEMENTATIONS:
        from apt_dense.core.attention import _kernel
        torch.nn.attention.restore_flash_attention_impl()
        _kernel.cache_clear()


def attend(parts, runs, backend, weight):
    """The output and its gradients, in float32."""
    parts = [part.clone().requires_grad_() for part in parts]
    out = varlen_attention(*parts, runs, backend)
    return [out.float(), *(grad.float() for grad in torch.autograd.grad((out * weight).sum(), parts))]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('whole', [False, True])
@pytest.mark.parametrize('name', LENGTHS)
def test_backends_agree(name, whole, dtype, backend, device):
    """With float32 and run by run, to the precision of the type; in both ways that equal runs may go."""
    lengths = LENGTHS[name]
    runs = Runs.from_lengths(lengths, torch.device(device), lengths[0] if whole else None)
    parts = [torch.randn(sum(lengths), 4, 64, device=device).to(dtype) for _ in range(3)]
    weight = torch.randn_like(parts[0])
    found = attend(parts, runs, backend, weight)
    apart = [[part[end - length:end].float() for part in (*parts, weight)]
             for length, end in zip(lengths, torch.tensor(lengths).cumsum(0).tolist(), strict=True)]
    single = [attend(rows[:3], Runs.from_lengths((len(rows[0]),), torch.device(device)), 'sdpa', rows[3])
              for rows in apart]
    for mine, theirs in zip(found, map(torch.cat, zip(*single, strict=True)), strict=True):
        # Of runs of one token the gradients of queries and keys are 0, but for rounding.
        error = (mine - theirs).norm() / theirs.norm().clamp(min=parts[2].float().norm())
        assert error < (0.02 if dtype == torch.bfloat16 else 0.004)
