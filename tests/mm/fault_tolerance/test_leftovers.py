"""What killed runs have left goes, and nothing else: not other names, not directories, not what is being written."""
import errno
import fcntl
import os
import signal

import pytest
from mmengine.config import Config

from apt_dense.core import files
from apt_dense.mm.cli import launch, start
from apt_dense.mm.fault_tolerance.checkpointing import WorkDirError, claim_work_dir, write_to_work_dir
from apt_dense.mm.fault_tolerance.leftovers import checkpoint_folders, remove_leftovers
from tests.mm.toys import Interrupted, interrupt, run_toy

OWN = ('iter_2.pth', 'epoch_12.pth', 'stopped.pth', 'last_checkpoint', 'best_coco_bbox_mAP_iter_20.pth',
       'best_mIoU_epoch_3.pth', 'iter_2-0123abcd.pth', 'best_mIoU_epoch_3-0123abcd.pth')
OTHERS = ('photos.zip', 'model.pth', 'iter_x.pth', 'my_iter_2.pth', 'iter_2.pth.old', 'dense_2.pth', 'last_checkpoint2',
          'best.pth', 'iter_2.onnx')


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != '.train.lock')


def test_only_the_projects_own_files_go(tmp_path, capsys):
    for name in (*OWN, *OTHERS):
        (tmp_path / f'{name}.partial').touch()
    (tmp_path / 'below').mkdir()
    (tmp_path / 'below/iter_2.pth.partial').touch()
    (tmp_path / 'iter_2.pth').touch()
    with claim_work_dir(tmp_path):
        assert names(tmp_path) == sorted([*(f'{name}.partial' for name in OTHERS), 'below', 'iter_2.pth'])
    printed = capsys.readouterr().out
    assert printed.count('which an interrupted run did not finish, is removed') == len(OWN)
    assert names(tmp_path / 'below') == ['iter_2.pth.partial']


def test_directories_and_links_stay(tmp_path, capsys):
    (tmp_path / 'iter_2.pth.partial').mkdir()
    (tmp_path / 'mine').touch()
    (tmp_path / 'iter_4.pth.partial').symlink_to(tmp_path / 'mine')
    with claim_work_dir(tmp_path):
        assert names(tmp_path) == ['iter_2.pth.partial', 'iter_4.pth.partial', 'mine']
    assert capsys.readouterr().out.count('is no file, and the checkpoint of its name cannot be written') == 2
    with pytest.raises(WorkDirError, match=r'iter_2\.pth cannot be written: Is a directory \(.*\.partial\)'):
        write_to_work_dir(tmp_path / 'iter_2.pth', b'x')
    assert (tmp_path / 'iter_2.pth.partial').is_dir()


@pytest.fixture
def writer(tmp_path):
    """A live process in the middle of writing iter_2.pth, 1 MB."""
    reader, ready = os.pipe()
    pid = os.fork()
    if not pid:
        def stay(handle):
            os.write(ready, b'x')
            signal.pause()

        files.os.fsync = stay
        write_to_work_dir(tmp_path / 'iter_2.pth', bytes(10**6))
    os.read(reader, 1)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_what_another_process_is_writing_stays(tmp_path, writer, capsys):
    partial = tmp_path / 'iter_2.pth.partial'
    remove_leftovers(tmp_path)
    assert partial.stat().st_size == 10**6
    assert f'{partial} is left: another process is writing it' in capsys.readouterr().out
    with pytest.raises(WorkDirError, match=r'iter_2\.pth cannot be written: another process is writing it'):
        write_to_work_dir(tmp_path / 'iter_2.pth', b'x')
    assert partial.stat().st_size == 10**6


def test_without_locks_nothing_is_removed(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'lockf', refuse)
    (tmp_path / 'iter_2.pth.partial').touch()
    remove_leftovers(tmp_path)
    assert 'cannot be told on this file system (No locks available)' in capsys.readouterr().out
    write_to_work_dir(tmp_path / 'iter_2.pth', b'x')
    assert names(tmp_path) == ['iter_2.pth']


def config(tmp_path, **settings) -> Config:
    return Config(dict(work_dir=str(tmp_path / 'runs/work'), default_hooks=dict(
        checkpoint=dict(type='SafeCheckpointHook', **settings), logger=None)))


def test_leftovers_in_the_checkpoints_own_directory(tmp_path, capsys):
    cfg = config(tmp_path, out_dir=str(tmp_path / 'out'), filename_tmpl='model_{:06d}.pth')
    (tmp_path / 'out/work').mkdir(parents=True)
    for name in ('iter_2.pth.partial', 'model_000004.pth.partial', 'best_mAP_model_000004.pth.partial'):
        (tmp_path / 'out/work' / name).touch()
    with launch.claim_output_dirs(cfg):
        assert names(tmp_path / 'out/work') == []
        other = config(tmp_path / 'other', out_dir=str(tmp_path / 'out'))  # another directory of this name
        pid = os.fork()
        if not pid:
            try:
                with launch.claim_output_dirs(other):
                    os._exit(1)
            except WorkDirError as error:
                os._exit(0 if 'out/work is in use by process' in str(error) else 2)
        assert os.waitpid(pid, 0)[1] == 0
    assert capsys.readouterr().out.count('is removed') == 3


@pytest.mark.parametrize(('settings', 'folders'), [
    ({}, []), (dict(out_dir='s3://bucket/out'), []), (dict(out_dir='out', backend_args=dict(backend='petrel')), []),
    (dict(out_dir='out'), ['out/work']), (dict(out_dir=None), [])])
def test_directories_that_checkpoints_are_written_into(tmp_path, settings, folders):
    cfg = config(tmp_path, **settings)
    cfg.custom_hooks = [dict(type='EMAHook'), dict(type='mmengine.CheckpointHook', out_dir='more')]
    assert list(map(str, checkpoint_folders(cfg))) == [*folders, 'more/work']
    cfg.custom_hooks[1].out_dir = str(tmp_path / 'runs/work')  # mmengine's hook takes it as it is
    assert list(map(str, checkpoint_folders(cfg))) == folders


def test_a_run_killed_in_another_directory_is_found(tmp_path):
    """The directory is where mmengine's hook writes; a kill before its first pointer does not lose the checkpoint."""
    hooks = dict(logger=None, checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2,
                                              out_dir=str(tmp_path / 'out')))
    with pytest.raises(Interrupted):
        run_toy(tmp_path / 'work', default_hooks=hooks, custom_hooks=[
            dict(type='InterruptHook', action=interrupt, train_iter=3)])
    (tmp_path / 'work/last_checkpoint').unlink()
    cfg = Config(dict(work_dir=str(tmp_path / 'work'), default_hooks=hooks))
    folder, = checkpoint_folders(cfg)
    assert (folder / 'iter_2.pth').is_file()
    start.set_start(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (True, str(folder / 'iter_2.pth'))
