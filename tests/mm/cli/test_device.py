"""No run takes the CPU of a GPU machine without a word; every process has a GPU of its own."""
import os
from argparse import Namespace

import pytest
import torch
from mmengine.config import Config

from apt_dense.mm.cli import device, launch, start
from tests.locations import CONFIGS

OLD_DRIVER = 'The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver.'
NO_DRIVER = 'Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU.'


@pytest.fixture
def machine(monkeypatch):
    """machine(cuda, signs, says): a torch for this CUDA, or none, on a machine with these signs of a GPU."""

    def make(cuda: str | None, signs: list[str], says: str = '', mmengine: str = 'cpu') -> None:
        def init():
            if says:
                raise RuntimeError(says)

        monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
        monkeypatch.setattr(device, 'get_device', lambda: mmengine)
        monkeypatch.setattr(device, 'gpu_signs', lambda: signs)
        monkeypatch.setattr(torch.version, 'cuda', cuda)
        monkeypatch.setattr(torch.cuda, 'init', init)

    return make


@pytest.mark.parametrize(('cuda', 'signs', 'says', 'wanted'), [
    ('13.0', ['/dev/nvidia0'], OLD_DRIVER, r'built for CUDA 13.0, the machine has /dev/nvidia0, .*too old \(found '
     r'version 12020\).*update it, or install a torch for it'),
    ('13.0', [], NO_DRIVER, 'no NVIDIA device is seen, .*Found no NVIDIA driver.*not the login node.*--gpus all'),
    ('13.0', ['/dev/nvidia0', '/usr/bin/nvidia-smi'], '', 'it found no device.*--gres=gpu:N'),
    (None, ['/usr/bin/nvidia-smi'], '', 'a build without CUDA, the machine has /usr/bin/nvidia-smi, .*install its CUDA '
     'build, pip install torch=='),
])
def test_the_cpu_of_a_gpu_machine_is_refused(machine, cuda, signs, says, wanted):
    machine(cuda, signs, says)
    with pytest.raises(launch.LaunchError, match=f'would take the CPU: .*{wanted}.*set CUDA_VISIBLE_DEVICES= '):
        start.start_processes(Config(dict(launcher='none')))


def test_a_job_without_gpus(machine, monkeypatch):
    machine('13.0', ['/dev/nvidia0'], NO_DRIVER)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', 'NoDevFiles')
    with pytest.raises(launch.LaunchError, match="CUDA_VISIBLE_DEVICES='NoDevFiles' names no GPU.*--gres=gpu:N"):
        device.check_device()


@pytest.mark.parametrize('hidden', ['', '-1'])
@pytest.mark.parametrize('cuda', ['13.0', None])
def test_hidden_gpus_insist_on_the_cpu(machine, monkeypatch, cuda, hidden):
    machine(cuda, ['/dev/nvidia0'], OLD_DRIVER)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', hidden)
    start.start_processes(Config(dict(launcher='none')))


@pytest.mark.parametrize(('cuda', 'signs', 'mmengine'), [
    (None, [], 'cpu'), ('13.0', ['/dev/nvidia0'], 'cuda'), (None, ['/dev/nvidia0'], 'npu')])
def test_nothing_to_refuse(machine, cuda, signs, mmengine):
    machine(cuda, signs, OLD_DRIVER, mmengine)
    device.check_device()


def test_amd_builds_are_left_alone(machine, monkeypatch):
    machine(None, ['/usr/bin/nvidia-smi'])
    monkeypatch.setattr(torch.version, 'hip', '6.4')
    device.check_device()


def test_signs_of_a_gpu(tmp_path, monkeypatch):
    tool = tmp_path / 'nvidia-smi'
    tool.write_text('#!/bin/sh\n')
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    assert device.gpu_signs()[-1] == str(tool)


@pytest.mark.parametrize(('launcher', 'environment', 'given', 'wanted'), [
    ('mpi', {'OMPI_COMM_WORLD_LOCAL_RANK': '3'}, 0, '3'),
    ('mpi', {'OMPI_COMM_WORLD_LOCAL_RANK': '3', 'LOCAL_RANK': '0'}, 0, '3'),
    ('pytorch', {'LOCAL_RANK': '2', 'RANK': '2', 'OMPI_COMM_WORLD_LOCAL_RANK': '3'}, 0, '2'),
    ('pytorch', {'RANK': '1'}, 1, '1'),
    ('none', {}, 0, '0'),
])
def test_local_rank(monkeypatch, launcher, environment, given, wanted):
    """By it mmengine gives the data-parallel model its GPU: with mpirun all ranks had the first."""
    for name in ('LOCAL_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    launch.load_config(Namespace(config=str(CONFIGS / 'apt_eva02_b_coco.py'), cfg_options=None, launcher=launcher,
                                 work_dir=None, local_rank=given))
    assert os.environ['LOCAL_RANK'] == wanted
