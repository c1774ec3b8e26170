"""Errors of a user's data and settings end as one message, from this process and from data loaders' workers."""
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS
from mmengine.runner import Runner

from apt_dense.mm import seg  # noqa: F401  (seg registers LoadLabelMap)
from apt_dense.mm.cli import launch
from apt_dense.mm.errors import DataError, LaunchError
from tests.mm.conftest import point_to

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]


def one_line(main, capsys) -> str:
    """What the tool prints for a main function that fails: one line, status 2."""
    assert launch.run_tool(main) == 2
    line, = capsys.readouterr().err.splitlines()
    return line


class Samples(torch.utils.data.Dataset):
    """One sample, that a transform loads."""

    def __init__(self, transform, sample):
        self.transform, self.sample = transform, sample

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.transform(dict(self.sample))


def load(transform, sample, num_workers):
    return lambda: list(torch.utils.data.DataLoader(Samples(transform, sample), num_workers=num_workers))


@pytest.mark.parametrize('num_workers', [0, 1])
@pytest.mark.parametrize('guarded', [False, True])
def test_label_maps(tmp_path, capsys, num_workers, guarded):
    step = dict(type='LoadLabelMap', num_classes=3)
    transform = TRANSFORMS.build(dict(type='GuardSamples', transforms=[step]) if guarded else step)
    sample = dict(img_path='a.jpg', seg_map_path=str(tmp_path / 'a.png'), reduce_zero_label=False, seg_fields=[])
    text = one_line(load(transform, sample, num_workers), capsys)
    assert f'{tmp_path}/a.png does not exist, the label map of a.jpg' in text
    assert text.startswith('error: bad sample: ' if guarded else f'error: {tmp_path}/a.png')
    (tmp_path / 'a.png').write_bytes(b'no picture')
    assert f'{tmp_path}/a.png cannot be read: ' in one_line(load(transform, sample, num_workers), capsys)


@pytest.mark.parametrize('num_workers', [0, 1])
def test_files_of_samples(tmp_path, capsys, num_workers):
    for backend in ('cv2', 'pillow'):
        main = load(LoadImageFromFile(imdecode_backend=backend), dict(img_path=str(tmp_path / '7.jpg')), num_workers)
        text = one_line(main, capsys)
        assert text.startswith(f'error: {tmp_path}/7.jpg: No such file or directory. ') and 'GuardSamples' in text
    (tmp_path / '8.jpg').write_bytes(b'no picture')
    text = one_line(load(LoadImageFromFile(), dict(img_path=str(tmp_path / '8.jpg')), num_workers), capsys)
    assert text.startswith(f'error: {tmp_path}/8.jpg is no picture that can be read. ')
    (tmp_path / '9.jpg').mkdir()
    text = one_line(load(LoadImageFromFile(), dict(img_path=str(tmp_path / '9.jpg')), num_workers), capsys)
    assert text.startswith(f'error: {tmp_path}/9.jpg: Is a directory. ')


class Failing:
    """A transform that fails in a way of its own."""

    def __init__(self, error):
        self.error = error

    def __call__(self, sample):
        raise self.error


@pytest.mark.parametrize('num_workers', [0, 1])
@pytest.mark.parametrize('error', [ValueError('a bug'), AssertionError('a bug'), OSError(5, 'Input/output error'),
                                   FileNotFoundError('a bug')])
def test_what_only_a_traceback_explains_keeps_it(capsys, num_workers, error):
    with pytest.raises(type(error)):
        launch.run_tool(load(Failing(error), {}, num_workers))
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('num_workers', [0, 1])
def test_errors_of_the_data_from_workers(capsys, num_workers):
    assert one_line(load(Failing(DataError('a.json: no image')), {}, num_workers), capsys) == 'error: a.json: no image'


def test_settings_of_this_projects_classes(capsys):
    """Theirs is a ValueError, because the core knows no other."""
    model = dict(type='APTEVA02', img_size=64, patch_size=16, embed_dims=32, depth=1, num_heads=2, window_size=2,
                 global_block_indexes=(), num_scales=3, thresholds=(1.0,))
    text = one_line(lambda: MODELS.build(model), capsys)
    assert text.startswith('error: ') and 'thresholds' in text


@pytest.fixture
def small(tiny_config, coco_root, tmp_path) -> Config:
    return point_to(tiny_config(), coco_root, tmp_path / 'work')


def test_epochs_of_an_endless_sampler(small, capsys):
    small.train_cfg = dict(type='ResumableEpochBasedTrainLoop', max_epochs=1)
    text = one_line(lambda: Runner.from_cfg(small).train(), capsys)
    assert text.startswith('error: ') and 'is endless, so would be the first epoch' in text


def test_a_missing_picture_ends_a_training_as_one_message(small, coco_root, capfd):
    """A whole run, with a worker."""
    for path in (coco_root / 'train').iterdir():
        path.unlink()
    for num_workers in (0, 1):
        small.train_dataloader.num_workers = num_workers
        small.experiment_name = small.visualizer.name = f'missing_{num_workers}_{os.getpid()}'
        assert launch.run_tool(lambda: Runner.from_cfg(small).train()) == 2
        message = capfd.readouterr().err.splitlines()[-1]
        assert message.startswith(f'error: {coco_root}/train/') and 'No such file or directory' in message


def import_tool(name):
    sys.path.insert(0, str(ROOT / 'tools'))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(ROOT / 'tools'))


@pytest.mark.parametrize('options', [
    ['train_dataloader.num_workers=0'], ['val_dataloader.num_workers=0'],
    ['train_dataloader.num_workers=0', 'train_dataloader.prefetch_factor=2',
     'train_dataloader.persistent_workers=False'],
    ['train_cfg.type=EpochBasedTrainLoop', 'train_cfg._delete_=True', 'train_cfg.max_epochs=1']])
def test_train_says_what_is_wrong_with_a_loader(options, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = str(ROOT / 'configs/eva02_ti_demo_det.py')
    monkeypatch.setattr(sys, 'argv', ['train.py', config, '--cfg-options', *options])
    tool = import_tool('train')
    with pytest.raises(DataError, match=r'num_workers is 0|InfiniteSampler has no end'):
        tool.main()


@pytest.fixture
def busy_port():
    with socket.create_server(('', 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_is_in_use(busy_port, monkeypatch, capsys):
    for name, value in dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=busy_port, RANK=0, WORLD_SIZE=1, LOCAL_RANK=0).items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(LaunchError, match=f'port {busy_port} of 127.0.0.1 is in use, .*PORT=NUMBER'):
        launch.start_processes(Config(dict(launcher='pytorch')))


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh'])
def test_the_scripts_look_at_the_port_before_torchrun(script, busy_port, tmp_path):
    """The first machine listens, no other; a stand-in for Python says what is started."""
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    arguments = ['config.py', '1'] if script == 'dist_train.sh' else ['config.py', 'a.pth', '1']
    for rank, busy in (('0', True), ('1', False)):
        done = subprocess.run([str(ROOT / 'tools' / script), *arguments], capture_output=True, text=True, timeout=60,
                              env=dict(os.environ, PORT=str(busy_port), PYTHON=str(python), NODE_RANK=rank))
        if busy:
            assert done.returncode == 2 and done.stdout == ''
            assert done.stderr.startswith(f'error: port {busy_port} is in use, ') and done.stderr.count('\n') == 1
        else:
            assert 'torch.distributed.run' in done.stdout and done.stderr == ''
