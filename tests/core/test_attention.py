import logging
import sys
import types
from pathlib import Path

import pytest
import torch

from apt_dense.core import attention
from apt_dense.core.attention import BACKENDS, IMPLEMENTATIONS, KERNELS, check_backend, varlen_attention
from apt_dense.core.runs import Runs
from tests import oracle

VARLEN = 'torch.nn.attention.varlen'
stand_ins = pytest.mark.own_device  # kernels of a GPU are stood in for, on a CPU
LENGTHS = {'unequal': (5, 1, 9, 3), 'equal': (6, 6, 6), 'one_run': (7,), 'runs_of_one': (1, 1, 1), 'long': (1, 60, 2)}


def runs_and_indexes(lengths: tuple[int, ...]) -> tuple[Runs, list[list[int]]]:
    ends = torch.tensor((0, *lengths)).cumsum(0).tolist()
    return (Runs.from_lengths(lengths, torch.get_default_device()),
            [list(range(begin, end)) for begin, end in zip(ends, ends[1:], strict=False)])


def qkv(tokens: int, heads: int = 3, head_dim: int = 8, **options) -> list[torch.Tensor]:
    return [2 * torch.randn(tokens, heads, head_dim, **options) for _ in range(3)]


@pytest.mark.parametrize('backend', ['sdpa', 'auto'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('name', LENGTHS)
def test_sdpa_equals_dense_softmax(name, dtype, backend):
    runs, indexes = runs_and_indexes(LENGTHS[name])
    parts = qkv(sum(LENGTHS[name]), dtype=dtype)
    out = varlen_attention(*parts, runs, backend)
    assert out.shape == parts[0].shape and out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(out, oracle.attention(*parts, indexes), atol=tolerance, rtol=0)


@pytest.mark.parametrize('name', LENGTHS)
def test_gradients_equal_dense_softmax(name):
    runs, indexes = runs_and_indexes(LENGTHS[name])
    parts = [part.requires_grad_() for part in qkv(sum(LENGTHS[name]), dtype=torch.float64)]
    weight = torch.randn_like(parts[0])
    found = torch.autograd.grad((varlen_attention(*parts, runs) * weight).sum(), parts)
    wanted = torch.autograd.grad((oracle.attention(*parts, indexes) * weight).sum(), parts)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)


def test_equal_runs_as_a_batch_equal_one_by_one():
    """The batched path is taken for equal lengths only; both give the same."""
    parts = qkv(18)
    together = varlen_attention(*parts, runs_and_indexes((6, 6, 6))[0])
    apart = [varlen_attention(*(part[begin:begin + 6] for part in parts), runs_and_indexes((6,))[0])
             for begin in (0, 6, 12)]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-6, rtol=0)


def test_a_run_does_not_see_the_others():
    runs = runs_and_indexes((5, 1, 9, 3))[0]
    parts = qkv(18)
    before = varlen_attention(*parts, runs)
    for part in parts:
        part[6:15] = 1e3 * torch.randn_like(part[6:15])
    after = varlen_attention(*parts, runs)
    assert torch.equal(before[:6], after[:6]) and torch.equal(before[15:], after[15:])
    assert not torch.equal(before[6:15], after[6:15])


@pytest.mark.parametrize('lengths', [(5, 1, 9, 3), (6, 6, 6)])
def test_strided_inputs(lengths):
    runs = runs_and_indexes(lengths)[0]
    packed = torch.randn(18, 3, 3, 8)
    parts = packed.unbind(1)
    wanted = varlen_attention(*(part.contiguous() for part in parts), runs)
    torch.testing.assert_close(varlen_attention(*parts, runs), wanted)


def test_unknown_backend():
    for call in (lambda: check_backend('xformers'),
                 lambda: varlen_attention(*qkv(3), runs_and_indexes((3,))[0], 'xformers')):
        with pytest.raises(ValueError, match="unknown attn_backend 'xformers': choose one of .*'auto', 'flash_attn'"):
            call()


# --- The two CUDA backends, with a stand-in for the kernel: what they are called with, and what 'auto' picks ---


class FakeKernel:
    """Takes the seven arguments that both kernels share, checks them and computes with the oracle."""

    def __init__(self):
        self.calls = 0
        self.options = {}  # of the last call

    def __call__(self, q, k, v, cu_q, cu_k, max_q, max_k, /, **options):
        self.calls += 1
        self.options = options
        assert all(part.shape == q.shape and part.dtype == q.dtype for part in (k, v))
        assert cu_q.dtype == cu_k.dtype == torch.int32 and torch.equal(cu_q, cu_k) and cu_q.device == q.device
        assert type(max_q) is type(max_k) is int and max_q == max_k == int(cu_q.diff().max())
        assert cu_q[0] == 0 and cu_q[-1] == len(q)
        ends = cu_q.tolist()
        return oracle.attention(q, k, v, [list(range(*pair)) for pair in zip(ends, ends[1:], strict=False)])


@pytest.fixture(autouse=True)
def search_again():
    """What a test installs, the next one does not find; and each logs anew."""
    attention._kernel.cache_clear()
    attention._log_choice.cache_clear()
    yield
    attention._kernel.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, module: str, function: str) -> FakeKernel:
    kernel, fake = FakeKernel(), types.ModuleType(module)
    setattr(fake, function, kernel)
    monkeypatch.setitem(sys.modules, module, fake)
    return kernel


@pytest.fixture
def fake_varlen(monkeypatch):
    """flash_attn is not installed, torch has varlen_attn, and tensors pass for those of a GPU of capability 8.0."""
    monkeypatch.setitem(sys.modules, 'flash_attn', None)
    monkeypatch.setattr(attention, '_cuda_kernel_obstacle', lambda q: None)
    return install(monkeypatch, VARLEN, 'varlen_attn')


@pytest.fixture
def fake_flash(fake_varlen, monkeypatch):
    """flash_attn is installed too."""
    return install(monkeypatch, 'flash_attn', 'flash_attn_varlen_func')


@pytest.mark.parametrize(('backend', 'kernel'), [('flash_attn', 'fake_flash'), ('torch_varlen', 'fake_varlen')])
@pytest.mark.parametrize('name', LENGTHS)
@stand_ins
def test_kernels_are_called_with_their_shared_arguments(name, backend, kernel, request):
    kernel = request.getfixturevalue(kernel)
    runs, indexes = runs_and_indexes(LENGTHS[name])
    parts = qkv(sum(LENGTHS[name]))
    torch.testing.assert_close(varlen_attention(*parts, runs, backend), oracle.attention(*parts, indexes))
    assert kernel.calls == (len(set(LENGTHS[name])) > 1)  # equal runs are one batch of plain attention


@stand_ins
def test_torchs_operator_is_called_without_the_function_around_it(monkeypatch):
    """Its values and gradients: tests/gpu."""
    pytest.importorskip(VARLEN, reason='torch before 2.10')
    function = attention._kernel('torch_varlen').function
    assert function.__module__ == attention.__name__  # the operator of this torch has the arguments that are wanted
    with pytest.raises(NotImplementedError, match='_flash_attention_forward'):  # and there is none for a CPU
        runs, _ = runs_and_indexes((5, 1, 9, 3))
        function(*qkv(18), runs.cu_seqlens, runs.cu_seqlens, 9, 9)
    monkeypatch.setattr(attention, 'FLASH_ARGUMENTS', ('query', 'other'))
    attention._kernel.cache_clear()
    assert attention._kernel('torch_varlen').function.__module__ == VARLEN
    monkeypatch.setattr(attention, 'OPERATOR', '_no_such_operator')
    attention._kernel.cache_clear()
    assert attention._kernel('torch_varlen').function.__module__ == VARLEN


@stand_ins
def test_flash_attn_is_deterministic_on_request(fake_flash):
    runs, _ = runs_and_indexes((5, 1, 9, 3))
    for wanted in (True, False):
        torch.use_deterministic_algorithms(wanted)
        varlen_attention(*qkv(18), runs, 'flash_attn')
        assert fake_flash.options == {'deterministic': wanted}


@pytest.mark.parametrize('kernel', ['fake_flash', 'fake_varlen'])
@stand_ins
def test_auto_takes_a_kernel_for_unequal_runs_only(kernel, request):
    kernel = request.getfixturevalue(kernel)
    varlen_attention(*qkv(18), runs_and_indexes((6, 6, 6))[0])
    assert kernel.calls == 0
    varlen_attention(*qkv(18), runs_and_indexes((5, 1, 9, 3))[0])
    assert kernel.calls == 1


@stand_ins
def test_auto_prefers_flash_attn(fake_flash, fake_varlen):
    varlen_attention(*qkv(18), runs_and_indexes((5, 1, 9, 3))[0])
    assert (fake_flash.calls, fake_varlen.calls) == (1, 0)


@stand_ins
def test_auto_takes_sdpa_on_old_gpus_and_old_torch(fake_varlen, monkeypatch):
    runs, indexes = runs_and_indexes((5, 1, 9, 3))
    parts = qkv(18)
    monkeypatch.setattr(attention, '_cuda_kernel_obstacle', lambda q: 'the GPU is older than Ampere')
    torch.testing.assert_close(varlen_attention(*parts, runs), oracle.attention(*parts, indexes))
    monkeypatch.setattr(attention, '_cuda_kernel_obstacle', lambda q: None)
    monkeypatch.setitem(sys.modules, VARLEN, None)
    torch.testing.assert_close(varlen_attention(*parts, runs), oracle.attention(*parts, indexes))
    assert fake_varlen.calls == 0


@stand_ins
def test_auto_takes_sdpa_for_tensors_without_kernel(monkeypatch):
    for name in ('flash_attn', 'torch_varlen'):
        monkeypatch.setitem(attention._FUNCTIONS, name, lambda *_: pytest.fail('not for these tensors'))
    for dtype in (torch.float32, torch.bfloat16):  # on the CPU
        varlen_attention(*qkv(18, dtype=dtype), runs_and_indexes((5, 1, 9, 3))[0])


@pytest.fixture
def registry(fake_varlen, monkeypatch):
    """torch's switch, on a GPU of capability 9.0; which implementation is active."""
    active = [None]
    monkeypatch.setattr(torch.nn.attention, 'current_flash_attention_impl', lambda: active[0])
    monkeypatch.setattr(torch.nn.attention, 'activate_flash_attention_impl', lambda name: active.__setitem__(0, name))
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device=None: 'NVIDIA A100')
    return active


@pytest.mark.parametrize(('backend', 'name'), [('fa3', 'FA3'), ('fa4', 'FA4')])
@stand_ins
def test_flash_attention_3_and_4_stand_behind_torchs_function(registry, fake_varlen, backend, name):
    runs, indexes = runs_and_indexes((5, 1, 9, 3))
    parts = qkv(18)
    for calls in (1, 2):
        torch.testing.assert_close(varlen_attention(*parts, runs, backend), oracle.attention(*parts, indexes))
        assert fake_varlen.calls == calls and registry == [name]
    other = {'fa3': 'fa4', 'fa4': 'fa3'}[backend]
    with pytest.raises(ImportError, match=f"attn_backend='{other}' needs .*{name} is active, and there is one for the "
                                          'whole process'):
        varlen_attention(*parts, runs, other)


@pytest.mark.parametrize(('backend', 'package'), [('fa3', 'flash-attention-3'), ('fa4', 'flash-attn-4')])
@stand_ins
def test_flash_attention_3_and_4_without_their_packages(fake_varlen, monkeypatch, backend, package):
    monkeypatch.setitem(sys.modules, 'flash_attn_interface', None)
    with pytest.raises(ImportError, match=f"attn_backend='{backend}' needs {package}.*, which (is not|does not load).*"
                                          "'torch_varlen', torch's own"):
        varlen_attention(*qkv(18), runs_and_indexes((5, 1, 9, 3))[0], backend)


@pytest.mark.parametrize(('backend', 'capability', 'wanted'), [
    ('fa3', (8, 0), '9.x'), ('fa3', (10, 0), '9.x'), ('fa4', (8, 0), '9.x or 10.x'), ('fa4', (12, 0), '9.x or 10.x')])
@stand_ins
def test_flash_attention_3_and_4_on_other_gpus(registry, monkeypatch, backend, capability, wanted):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: capability)
    with pytest.raises(ValueError, match=f"attn_backend='{backend}' needs a GPU of compute capability {wanted}, this "
                                         "one, NVIDIA A100, is another: set attn_backend='auto'"):
        varlen_attention(*qkv(18), runs_and_indexes((5, 1, 9, 3))[0], backend)


@pytest.fixture
def hopper(monkeypatch):
    """cuDNN comes first in plain attention; every plain call notes the backends that it may take."""
    allowed = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def note(q, k, v):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return plain(q, k, v)

    monkeypatch.setattr(attention, '_plans_by_length', lambda q: True)
    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', note)
    return allowed


@pytest.mark.parametrize('backend', ['auto', 'torch_varlen'])
@pytest.mark.parametrize(('lengths', 'whole', 'calls'), [
    ((6, 6, 6), 6, 0),  # nothing is merged, as in the dense twin: one plan
    ((6, 6, 6), 8, 1), ((6, 6, 6), None, 1), ((7,), 8, 1), ((7,), 7, 0), ((5, 1, 9, 3), 9, 1)])
@stand_ins
def test_no_plan_for_each_number_of_tokens(hopper, fake_varlen, backend, lengths, whole, calls):
    """An image alone is one run, of another length than the last image's."""
    runs, indexes = Runs.from_lengths(lengths, torch.get_default_device(), whole), runs_and_indexes(lengths)[1]
    parts = qkv(sum(lengths))
    torch.testing.assert_close(varlen_attention(*parts, runs, backend), oracle.attention(*parts, indexes))
    assert fake_varlen.calls == calls
    assert hopper == ([] if calls else [True])


@pytest.mark.parametrize(('lengths', 'whole', 'allowed'), [
    ((6, 6, 6), 6, [True]), ((6, 6, 6), 8, [False]), ((7,), 8, [False]), ((5, 1, 9), 9, [False] * 3)])
@stand_ins
def test_plain_attention_over_other_lengths_leaves_cudnn_out(hopper, monkeypatch, lengths, whole, allowed):
    monkeypatch.setattr(attention, '_cuda_kernel_obstacle', lambda q: 'the GPU is older')
    runs, indexes = Runs.from_lengths(lengths, torch.get_default_device(), whole), runs_and_indexes(lengths)[1]
    parts = qkv(sum(lengths))
    for backend in ('auto', 'sdpa'):
        torch.testing.assert_close(varlen_attention(*parts, runs, backend), oracle.attention(*parts, indexes))
    assert hopper == allowed * 2 and torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(('capability', 'dtype', 'wanted'), [
    ((8, 0), torch.bfloat16, False), ((9, 0), torch.bfloat16, True), ((10, 0), torch.float16, True),
    ((9, 0), torch.float32, False)])
@stand_ins
def test_where_plans_are_made(monkeypatch, capability, dtype, wanted):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: capability)
    assert attention._plans_by_length(on_cuda(dtype, 64)) == wanted
    assert not attention._plans_by_length(torch.zeros(3, 1, 8, dtype=torch.bfloat16))


def on_cuda(dtype: torch.dtype, head_dim: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(device=torch.device('cuda:0'), dtype=dtype, shape=(18, 3, head_dim))


@pytest.mark.parametrize(('q', 'obstacle'), [
    (on_cuda(torch.bfloat16, 64), None), (on_cuda(torch.float16, 256), None),
    (on_cuda(torch.float32, 64), 'dtype is torch.float32'), (on_cuda(torch.float64, 64), 'dtype is torch.float64'),
    (on_cuda(torch.float16, 264), 'head_dim is 264'), (on_cuda(torch.float16, 12), 'head_dim is 12'),
    (torch.zeros(18, 3, 8, device='cpu'), 'they are on cpu'),
])
@stand_ins
def test_what_keeps_the_kernels_from_tensors(q, obstacle, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: (8, 0))
    found = attention._cuda_kernel_obstacle(q)
    assert found is None if obstacle is None else obstacle in found


@stand_ins
def test_gpus_before_ampere(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device=None: 'Tesla T4')
    assert attention._cuda_kernel_obstacle(on_cuda(torch.float16, 64)) == 'the GPU, Tesla T4, is older than Ampere'


@stand_ins
def test_flash_attn_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'flash_attn', None)
    with pytest.raises(ImportError, match=r"attn_backend='flash_attn' needs the package flash-attn, which is not "
                                          r"installed: set attn_backend='auto' or 'torch_varlen' .*pip install flash-"):
        varlen_attention(*qkv(18), runs_and_indexes((5, 1, 9, 3))[0], 'flash_attn')


@stand_ins
def test_torch_varlen_without_the_module(monkeypatch):
    monkeypatch.setitem(sys.modules, VARLEN, None)
    with pytest.raises(ImportError, match=r"attn_backend='torch_varlen' needs torch >= 2.10, this is .*: set "
                                          "attn_backend='auto'"):
        varlen_attention(*qkv(18), runs_and_indexes((5, 1, 9, 3))[0], 'torch_varlen')


COUNT = "with open(__file__ + '.imports', 'a') as file:\n    file.write('.')\n"
# What an import finds: its files, and what the error says.
UNUSABLE = {
    'a folder': ({}, 'cannot import name'),
    'flash-attn-4': ({'cute/__init__.py': ''}, 'cannot import name'),
    'a package without the function': ({'__init__.py': COUNT}, 'cannot import name'),
    'no library': ({'__init__.py': f'{COUNT}import flash_attn_2_cuda'}, "No module named 'flash_attn_2_cuda'"),
    **{f'a library of another torch, {kind}': (
        {'__init__.py': f"{COUNT}raise {kind}('libx.so: undefined symbol')"}, 'libx.so: undefined symbol')
       for kind in ('ImportError', 'OSError', 'RuntimeError', 'AttributeError', 'ValueError')}}


def imports(folder: Path) -> int:
    return sum(len(path.read_text()) for path in folder.rglob('*.imports'))


@pytest.fixture(params=UNUSABLE)
def unusable(request, monkeypatch, tmp_path):
    """install(backend): something that does not serve stands in its place; then the text of the error."""
    def install_unusable(backend: str) -> str:
        files, text = UNUSABLE[request.param]
        folder = tmp_path / {'flash_attn': 'flash_attn', 'torch_varlen': 'varlen'}[backend]
        folder.mkdir()
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)
        if backend == 'flash_attn':
            monkeypatch.delitem(sys.modules, 'flash_attn', raising=False)
            monkeypatch.syspath_prepend(tmp_path)
        else:
            monkeypatch.delitem(sys.modules, VARLEN, raising=False)
            monkeypatch.setattr(torch.nn.attention, '__path__', [str(tmp_path)])
        return text

    yield install_unusable
    sys.modules.pop('flash_attn', None)
    sys.modules.pop('flash_attn.cute', None)


@stand_ins
def test_auto_passes_over_a_flash_attn_that_is_not_usable(fake_varlen, unusable, caplog, tmp_path):
    text = unusable('flash_attn')
    runs, indexes = runs_and_indexes((5, 1, 9, 3))
    parts = qkv(18)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            torch.testing.assert_close(varlen_attention(*parts, runs), oracle.attention(*parts, indexes))
    assert fake_varlen.calls == 3 and imports(tmp_path) <= 1
    record, = caplog.records
    assert (record.name, record.levelname) == ('apt_dense.core.attention', 'WARNING')
    assert record.getMessage().startswith("attn_backend='auto' takes 'torch_varlen': flash_attn does not load")
    assert text in record.getMessage()


@stand_ins
def test_auto_passes_over_a_varlen_that_is_not_usable(fake_varlen, unusable, caplog, tmp_path):
    text = unusable('torch_varlen')
    runs, indexes = runs_and_indexes((5, 1, 9, 3))
    parts = qkv(18)
    for _ in range(3):
        torch.testing.assert_close(varlen_attention(*parts, runs), oracle.attention(*parts, indexes))
    assert imports(tmp_path) <= 1
    record, = caplog.records
    assert record.getMessage().startswith("attn_backend='auto' takes 'sdpa': flash_attn is not installed; torch_varlen "
                                          'does not load')
    assert text in record.getMessage()


@pytest.mark.parametrize('backend', ['flash_attn', 'torch_varlen'])
@stand_ins
def test_a_backend_by_name_says_why_it_is_not_usable(fake_varlen, unusable, backend):
    text = unusable(backend)
    for _ in range(2):
        with pytest.raises(ImportError, match=f"attn_backend='{backend}' needs .*does not load .*{text}.*'auto'"):
            varlen_attention(*qkv(18), runs_and_indexes((5, 1, 9, 3))[0], backend)


@pytest.mark.parametrize(('kernel', 'message'), [
    ('fake_flash', "attn_backend='auto' takes 'flash_attn'"),
    ('fake_varlen', "attn_backend='auto' takes 'torch_varlen': flash_attn is not installed"),
    (None, "attn_backend='auto' takes 'sdpa', run by run: flash_attn and torch_varlen take none of these tensors, "
     'they are on cpu')])
@stand_ins
def test_auto_says_once_what_it_takes(kernel, message, request, caplog):
    if kernel:
        request.getfixturevalue(kernel)
    with caplog.at_level(logging.INFO, 'apt_dense'):
        for _ in range(2):
            varlen_attention(*qkv(18), runs_and_indexes((6, 6, 6))[0])  # a batch: no choice
            varlen_attention(*qkv(18), runs_and_indexes((5, 1, 9, 3))[0])
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [('INFO', message)]


@stand_ins
def test_kernels_on_the_cpu(monkeypatch):
    install(monkeypatch, 'flash_attn', 'flash_attn_varlen_func')
    install(monkeypatch, VARLEN, 'varlen_attn')
    for backend in ('flash_attn', 'torch_varlen'):
        for lengths in ((5, 1, 9, 3), (6, 6, 6)):
            with pytest.raises(ValueError, match=f"attn_backend='{backend}' needs float16 or bfloat16 tensors on a GPU "
                                                 '.* at most 256, but they are on cpu'):
                varlen_attention(*qkv(18), runs_and_indexes(lengths)[0], backend)


@pytest.mark.own_device
@pytest.mark.skipif(not torch.cuda.is_available(), reason='the kernels themselves run on CUDA only')
@pytest.mark.parametrize('backend', [name for name in BACKENDS if name not in ('sdpa', *IMPLEMENTATIONS)])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', LENGTHS)
def test_kernels_equal_dense_softmax(name, dtype, backend):
    if backend in KERNELS and attention._kernel(backend).function is None:
        pytest.skip(attention._kernel(backend).obstacle)
    runs = Runs.from_lengths(LENGTHS[name], torch.device('cuda'))
    parts = [part.to('cuda', dtype).requires_grad_() for part in qkv(sum(LENGTHS[name]), head_dim=64)]
    wide = [part.detach().double().cpu().requires_grad_() for part in parts]
    wanted = oracle.attention(*wide, runs_and_indexes(LENGTHS[name])[1])
    out = varlen_attention(*parts, runs, backend)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 4e-3
    torch.testing.assert_close(out.double().cpu(), wanted, atol=tolerance, rtol=tolerance)
    weight = torch.randn_like(wanted)
    found = torch.autograd.grad((out * weight.to(out)).sum(), parts)
    for gradient, want in zip(found, torch.autograd.grad((wanted * weight).sum(), wide), strict=True):
        torch.testing.assert_close(gradient.double().cpu(), want, atol=5 * tolerance, rtol=5 * tolerance)
