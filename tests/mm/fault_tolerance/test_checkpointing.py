"""A checkpoint is whole or not there; the last whole one is found; one run holds a work directory."""
import errno
import fcntl
import os
import re
import resource
import signal
import socket
from contextlib import contextmanager

import pytest
import torch
from mmengine.fileio import get_file_backend

from apt_dense.mm.cli import launch, start
from apt_dense.mm.fault_tolerance import checkpointing
from apt_dense.mm.fault_tolerance.checkpointing import (
    WorkDirError,
    claim_work_dir,
    find_damage,
    find_last_good_checkpoint,
)
from tests.mm.toys import METRIC_VALUES, run_toy


@contextmanager
def small_files(limit):
    """The kernel refuses to make a file larger, as it refuses to fill a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_a_failed_write_changes_nothing(tmp_path):
    backend, path = get_file_backend(str(tmp_path)), tmp_path / 'made/iter_2.pth'
    backend.put(b'old', path)
    with small_files(1000), pytest.raises(WorkDirError, match=(
            rf'{path} cannot be written: File too large\. It needs 0\.1 MB, and .* MB are free there\. Nothing was lost'
            r': .* go on with --resume')):
        backend.put(b'x' * 100_000, path)
    assert path.read_bytes() == b'old' and os.listdir(path.parent) == ['iter_2.pth']
    backend.put_text('näw', path)
    assert path.read_text(encoding='utf-8') == 'näw' and os.listdir(path.parent) == ['iter_2.pth']


def test_full_disk_ends_the_training_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    sync, written = os.fsync, []

    def fill(handle):
        if os.readlink(f'/proc/self/fd/{handle}').endswith('.pth.partial'):
            written.append(handle)
            if len(written) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(checkpointing.os, 'fsync', fill)
    with pytest.raises(WorkDirError, match=r'iter_6\.pth cannot be written: No space left on device\. It needs 0\.'):
        run_toy(tmp_path)
    assert sorted(path.name for path in tmp_path.glob('*.pth*')) == ['iter_2.pth', 'iter_4.pth']
    assert find_last_good_checkpoint(tmp_path) == str(tmp_path / 'iter_4.pth')
    assert find_damage(tmp_path / 'iter_4.pth') is None


@pytest.fixture
def replaced(monkeypatch):
    """[(the file that is renamed into place, the checkpoints that are there just before)]."""
    seen, replace = [], os.replace

    def look(source, target):
        names = sorted(path.name for path in target.parent.glob('*.pth'))
        assert find_damage(source) is None or target.name == 'last_checkpoint'
        seen.append((target.name, names))
        replace(source, target)

    monkeypatch.setattr(checkpointing.os, 'replace', look)
    return seen


def hooks(**settings):
    return dict(logger=None, checkpoint=dict(type='CheckpointHook', by_epoch=False, **settings))


def test_the_old_checkpoint_goes_after_the_new_one_is_there(tmp_path, replaced):
    METRIC_VALUES[:] = [0.1, 0.2]
    run_toy(tmp_path, default_hooks=hooks(interval=4, max_keep_ckpts=1, save_best='mAP'),
            train_cfg=dict(by_epoch=False, max_iters=8, val_interval=4))
    assert replaced == [
        ('iter_4.pth', []), ('last_checkpoint', ['iter_4.pth']),
        ('best_mAP_iter_4.pth', ['iter_4.pth']),
        ('iter_4.pth', ['best_mAP_iter_4.pth', 'iter_4.pth']),  # it holds the name of the best
        ('last_checkpoint', ['best_mAP_iter_4.pth', 'iter_4.pth']),
        ('iter_8.pth', ['best_mAP_iter_4.pth', 'iter_4.pth']),
        ('last_checkpoint', ['best_mAP_iter_4.pth', 'iter_4.pth', 'iter_8.pth']),
        ('best_mAP_iter_8.pth', ['best_mAP_iter_4.pth', 'iter_8.pth']),
        ('iter_8.pth', ['best_mAP_iter_4.pth', 'best_mAP_iter_8.pth', 'iter_8.pth']),
        ('last_checkpoint', ['best_mAP_iter_4.pth', 'best_mAP_iter_8.pth', 'iter_8.pth'])]
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['best_mAP_iter_8.pth', 'iter_8.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_8.pth')


def test_what_a_kill_kept_from_being_removed_goes_with_the_next_run(tmp_path, monkeypatch):
    settings = dict(default_hooks=hooks(interval=2, max_keep_ckpts=2))

    def die(self, paths):
        if list(paths):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpointing.SafeCheckpointHook, '_remove', die)
        run_toy(tmp_path, **settings)
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_2.pth', 'iter_4.pth', 'iter_6.pth']
    run_toy(tmp_path, resume='iter_6.pth', **settings)
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_10.pth', 'iter_8.pth']


def save(path, age=0):
    """A checkpoint of two records, ``age`` seconds old."""
    torch.save({'state_dict': {'weight': torch.arange(100.)}, 'meta': {}}, path)
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    return str(path)


def truncate(path):
    os.truncate(path, os.path.getsize(path) // 2)


def flip(path):
    """Change one bit of a weight."""
    content = bytearray(open(path, 'rb').read())  # noqa: SIM115
    position = content.index(torch.arange(100.).numpy().tobytes()) + 100
    content[position] ^= 1
    open(path, 'wb').write(content)  # noqa: SIM115


def test_last_good_checkpoint(tmp_path):
    assert find_last_good_checkpoint(tmp_path / 'no') is None
    old, last = save(tmp_path / 'iter_9.pth', age=60), save(tmp_path / 'iter_4.pth', age=30)
    save(tmp_path / 'best_mAP_iter_9.pth')
    save(tmp_path / 'iter_5.pth.partial')
    assert find_last_good_checkpoint(tmp_path) == last  # the newest, whatever its number
    (tmp_path / 'last_checkpoint').write_text(old)
    assert find_last_good_checkpoint(tmp_path) == old  # what the run says comes first
    (tmp_path / 'last_checkpoint').write_text('')
    assert find_last_good_checkpoint(tmp_path) == last
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/iter_4.pth')  # the directory was moved
    assert find_last_good_checkpoint(tmp_path) == last


@pytest.mark.parametrize(('damage', 'reason'), [
    (truncate, 'File is not a zip file'), (flip, r'the checksum of .*/data/0 is wrong'),
    (os.unlink, 'No such file'), (lambda path: open(path, 'w').close(), 'not a zip file')])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage, reason, capsys):
    last, before = save(tmp_path / 'iter_4.pth'), save(tmp_path / 'iter_2.pth', age=60)
    (tmp_path / 'last_checkpoint').write_text(last)
    damage(last)
    assert find_last_good_checkpoint(tmp_path) == before
    assert f'{last} is passed over: ' in capsys.readouterr().out
    assert re.search(reason, find_damage(last))
    truncate(before)
    assert find_last_good_checkpoint(tmp_path) == last  # to be refused with its name, not begun anew in silence


def test_damaged_checkpoints_only_are_an_error(tmp_path, monkeypatch):
    last = save(tmp_path / 'iter_4.pth')
    truncate(last)
    (tmp_path / 'last_checkpoint').write_text(last)
    with pytest.raises(launch.LaunchError, match=r'iter_4\.pth.*last_checkpoint; name another: --resume PATH'):
        start.set_start(launch.Config(dict(work_dir=str(tmp_path))), 'auto')


def test_the_checkpoints_seed_becomes_the_configs(tmp_path):
    torch.save({'state_dict': {'a': torch.ones(1)}, 'meta': {'seed': 17}}, tmp_path / 'iter_4.pth')
    for settings in ({}, dict(randomness=dict(seed=3, deterministic=True))):
        cfg = launch.Config(dict(work_dir=str(tmp_path), **settings))
        start.set_start(cfg, 'auto')
        assert cfg.randomness == dict(settings.get('randomness', {}), seed=17)


@pytest.fixture
def holder(tmp_path):
    """The PID of a process that was killed while it held the directory, with a child that lives on."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        with claim_work_dir(tmp_path):
            child = os.fork()
            if child:
                os.write(writer, str(child).encode())
            signal.pause()
    child = int(os.read(reader, 20))
    yield pid
    for process in (pid, child):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_one_run_in_a_work_directory(tmp_path, holder):
    (tmp_path / 'iter_2.pth.partial').touch()
    message = f'{tmp_path} is in use by process {holder} on {socket.gethostname()}: two runs would overwrite each other'
    with pytest.raises(WorkDirError, match=message), claim_work_dir(tmp_path):
        pass
    assert (tmp_path / 'iter_2.pth.partial').is_file()  # the other run is writing it
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with claim_work_dir(tmp_path):  # although a worker of the killed run is still alive
        assert not (tmp_path / 'iter_2.pth.partial').exists()
        assert (tmp_path / '.train.lock').read_text() == f'process {os.getpid()} on {socket.gethostname()}'


def test_a_work_directory_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(WorkDirError, match=r'work directory .*/file/work cannot be written: Not a directory .*Choose '
                                           r'another: --work-dir'), claim_work_dir(tmp_path / 'file/work'):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'lockf', refuse)
    with claim_work_dir(tmp_path):
        assert 'cannot be locked on this file system (No locks available)' in capsys.readouterr().out


@pytest.mark.parametrize(('launcher', 'rank', 'claims'), [
    ('pytorch', '0', True), ('pytorch', '1', False), ('none', '1', True)])
def test_the_first_process_claims(tmp_path, monkeypatch, launcher, rank, claims):
    monkeypatch.setenv('RANK', rank)
    with launch.claim_output_dirs(launch.Config(dict(work_dir=str(tmp_path / 'work'), launcher=launcher))):
        assert (tmp_path / 'work').is_dir() == claims


@pytest.mark.parametrize(('error', 'text'), [
    (WorkDirError(errno.EACCES, 'work directory w is in use'), 'error: work directory w is in use'),
    (OSError(errno.ENOSPC, 'No space left on device', 'w/log'), 'error: w/log cannot be written: No space left')])
def test_the_tool_prints_it_as_one_message(capsys, error, text):
    def main():
        raise error

    assert launch.run_tool(main) == 2
    printed = capsys.readouterr().err
    assert text in printed and printed.count('\n') == 1
    error.errno = errno.ENOENT
    if type(error) is OSError:
        with pytest.raises(OSError, match='No space left'):
            launch.run_tool(main)


def test_checkpoints_of_other_names_are_found(tmp_path):
    for name in ('model_2.pth', 'model_4.pth', 'other.pth'):
        torch.save({'state_dict': {}}, tmp_path / name)
    os.utime(tmp_path / 'model_2.pth', (1, 1))
    (tmp_path / 'model_4.pth').write_bytes(b'cut')
    assert find_last_good_checkpoint(tmp_path) is None
    assert find_last_good_checkpoint(tmp_path, names=['model_{}.pth']) == str(tmp_path / 'model_2.pth')
