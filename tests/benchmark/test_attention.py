"""The benchmark of attention alone; its times are not judged."""
import contextlib
import json

import pytest
import torch

from apt_dense.benchmark import attention
from apt_dense.core.attention import varlen_attention
from apt_dense.core.runs import Runs


def test_a_kernel_that_is_absent_costs_no_other(tmp_path, capsys):
    path = tmp_path / 'attention.json'
    arguments = ['--shrink', '64', '--lengths', '2', '--dtype', 'float32', '--json', str(path)]
    assert attention.main([*arguments, '--methods', 'sdpa', 'torch_varlen']) == 0
    content = json.loads(path.read_text())
    assert [row['method'] for row in content['rows']] == ['sdpa'] * 3
    assert [row['runs'] for row in content['rows']] == list(attention.RUNS)
    reason, = content['absent']
    assert reason.startswith("torch_varlen: attn_backend='torch_varlen' needs ")
    assert reason in capsys.readouterr().out
    assert attention.main([*arguments, '--methods', 'torch_varlen']) == 1, 'nothing was measured'


def test_each_number_of_tokens_is_computed_twice(monkeypatch):
    """Three apart, after one that loads the kernel; the medians are of the first and of the second times."""
    lengths, times = [], iter(range(1, 100))

    class Ticking:
        def __init__(self, *_):
            pass

        def mark(self):
            pass

        def seconds(self):
            return dict(other=next(times))

    monkeypatch.setattr(attention, 'Marks', Ticking)
    monkeypatch.setattr(attention, 'attend', lambda method, q, k, v, runs: lengths.append(runs.lengths))
    args = attention.argparse.Namespace(dtype='float32', device='cpu', clock='wall', lengths=3, shrink=100)
    row = attention.measure('sdpa', 'windows of 1536 px', args)
    assert [first for first, *_ in lengths] == [10, 10, 13, 13, 16, 16, 19, 19]
    assert len({tuple(rest) for _, *rest in lengths}) == 1
    assert (row['first'], row['again']) == (5, 6)


@pytest.mark.parametrize('lengths', [(5, 1, 9), (4, 4), (7,)])
def test_cudnns_way_is_attention_run_by_run(lengths, monkeypatch):
    """With the kernel of a CPU in cuDNN's place."""
    parts = [torch.randn(sum(lengths), 2, 8) for _ in range(3)]
    runs = Runs.from_lengths(lengths, torch.device('cpu'))
    monkeypatch.setattr(attention, 'sdpa_kernel', lambda backend: contextlib.nullcontext())
    found = attention.attend('cudnn', *parts, runs)
    torch.testing.assert_close(found, varlen_attention(*parts, runs, 'sdpa'), atol=1e-6, rtol=0)
