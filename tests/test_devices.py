"""APT_TEST_DEVICE: what it refuses, and what it does to which tests."""
import os
import subprocess
import sys

import pytest
import torch

from tests import devices
from tests.locations import ROOT

# In tests/core, which the variable moves, a test of this text would tell where its tensors are.
PROBE = '''
import pytest
import torch

def test_moved():
    assert torch.get_float32_matmul_precision() == 'highest' and not torch.backends.cudnn.allow_tf32
    assert str(torch.zeros(1).device) == 'meta', torch.zeros(1).device

@pytest.mark.own_device
def test_stays():
    assert str(torch.zeros(1).device) == 'cpu'
'''


def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = dict(os.environ, APT_TEST_DEVICE=name, PYTHONPATH=str(ROOT))
    return subprocess.run([sys.executable, '-m', 'pytest', *arguments], cwd=ROOT, env=environment, capture_output=True,
                          text=True)


@pytest.mark.parametrize(('name', 'message'), [
    ('gpu', "APT_TEST_DEVICE='gpu' is no device of torch: set it to cpu, cuda or cuda:0"),
    ('meta', "APT_TEST_DEVICE='meta': nothing here runs on meta: set it to cpu, cuda or cuda:0"), ('cpu', None)])
def test_unknown_devices_are_refused(name, message):
    assert devices.obstacle(name) == message


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert devices.obstacle('cuda').startswith("APT_TEST_DEVICE='cuda', but torch ")
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert devices.obstacle('cuda:1') is None and devices.obstacle('cuda') is None
    assert 'torch finds 2 GPU(s)' in devices.obstacle('cuda:2')


def test_pytest_stops_in_one_line():
    done = run('gpu', 'tests/test_devices.py')
    assert done.returncode == 4 and 'no tests ran' not in done.stdout
    assert done.stderr.strip().splitlines() == [f'ERROR: {devices.obstacle("gpu")}']


def test_it_moves_the_core_but_for_own_devices(tmp_path):
    """With a device that refuses nothing here: the tests' own folder, in small."""
    folder = tmp_path / 'tests'
    (folder / 'core').mkdir(parents=True)
    for name in ('__init__.py', 'conftest.py', 'devices.py'):
        (folder / name).write_text((ROOT / 'tests' / name).read_text())
    text = (folder / 'devices.py').read_text()
    (folder / 'devices.py').write_text(text.replace("not in ('cpu', ", "not in ('meta', 'cpu', "))
    (folder / 'core/__init__.py').touch()
    (folder / 'core/test_probe.py').write_text(PROBE)
    (tmp_path / 'pytest.ini').write_text((ROOT / 'pytest.ini').read_text())
    done = subprocess.run([sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', str(folder)], cwd=tmp_path,
                          env=dict(os.environ, APT_TEST_DEVICE='meta', PYTHONPATH=str(tmp_path)), capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr
