"""What the setup check of the first hour finds on a CPU, and what it refuses."""
import json

import pytest
import torch

from tests.locations import load_tool

tool = load_tool('benchmark/check_gpu.py')


def test_a_cpu(tmp_path, capsys):
    path = tmp_path / 'setup.json'
    assert tool.main(['--device', 'cpu', '--json', str(path)]) == 0
    content, printed = json.loads(path.read_text()), capsys.readouterr().out
    assert content['difference'] == 0 and content['packages']['torch'] == torch.__version__
    assert content['kernels']['sdpa'] == 'works' and 'needs' in content['kernels']['torch_varlen']
    assert '- sdpa: works' in printed and content['device']['name'] in printed


def test_a_device_that_computes_something_else_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(tool, 'difference', lambda device: 0.5)
    assert tool.main(['--device', 'cpu']) == 1
    assert 'differs by 0.5 from a CPU, at most 0.02 was expected' in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU is there')
def test_a_gpu_that_is_not_there(capsys):
    assert tool.main(['--device', 'cuda']) == 2
    assert capsys.readouterr().err.startswith('error: --device cuda, but torch ')
