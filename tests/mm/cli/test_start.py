"""Several processes start from one checkpoint: rank 0 chooses it, the others check that they have it."""
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from apt_dense.mm.cli import launch, start, waiting
from apt_dense.mm.fault_tolerance.checkpointing import checkpoint_identity
from tests.mm.processes import CONTEXT, free_port


def save(folder: Path, iteration: int, name: str | None = None, value: float = 0.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f'iter_{iteration}.pth')
    torch.save({'state_dict': {'weight': torch.full((3,), value)}, 'meta': dict(iter=iteration, seed=17)}, path)
    return path


def shared(root: Path) -> Config:
    """Rank 0's directory alone holds a checkpoint, which all can read."""
    own = root / f'work{os.environ["RANK"]}'
    if os.environ['RANK'] == '0':
        (own / 'last_checkpoint').write_text(str(save(own, 4)))
    return Config(dict(work_dir=str(own)))


def newer_elsewhere(root: Path) -> Config:
    """Rank 1's directory holds a checkpoint, rank 0's none: nobody resumes it."""
    own = root / f'work{os.environ["RANK"]}'
    if os.environ['RANK'] == '1':
        save(own, 8)
    return Config(dict(work_dir=str(own)))


def own_machine(root: Path) -> Path:
    """A current directory of this rank's own, as machines that share no folder have."""
    folder = root / f'machine{os.environ["RANK"]}'
    folder.mkdir()
    os.chdir(folder)
    return folder


def unreadable(root: Path) -> Config:
    """Each machine has a directory of its own, and rank 1's is empty."""
    own_machine(root)
    if os.environ['RANK'] == '0':
        save(Path('work'), 4)
    return Config(dict(work_dir='work'))


def another_file(root: Path) -> Config:
    """Each machine has a directory of its own, with checkpoints of one name and different runs."""
    save(own_machine(root) / 'work', 4 - int(os.environ['RANK']), 'iter_4.pth')
    return Config(dict(work_dir='work'))


def other_weights(root: Path) -> Config:
    """What training begins with differs between the machines."""
    save(own_machine(root), 0, 'dense.pth', value=float(os.environ['RANK']))
    return Config(dict(work_dir='work', load_from='dense.pth'))


def copied(root: Path) -> Config:
    """Each machine has a copy of its own."""
    save(own_machine(root), 0, 'dense.pth')
    return Config(dict(work_dir='work', load_from='dense.pth'))


def nothing(root: Path) -> Config:
    """Rank 0 has nothing to start from, and the config wants something."""
    return Config(dict(work_dir=str(root / 'work'), requires_load_from=True))


CASES = (shared, newer_elsewhere, unreadable, another_file, other_weights, copied, nothing)


def run_cases(rank: str, port: str, root: Path) -> None:
    """In a rank's process: each case's start or error, what was logged, and how often a whole file was read."""
    logged = []
    start.print_log = lambda text, level=None: logged.append(text)
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    read, testzip = [], zipfile.ZipFile.testzip
    zipfile.ZipFile.testzip = lambda archive: (read.append(archive.filename), testzip(archive))[1]
    results = {}
    for case in CASES:
        (root / case.__name__).mkdir(exist_ok=True)
        cfg = case(root / case.__name__)
        cfg.launcher = 'pytorch'
        try:
            start.set_start(cfg, 'auto')
            results[case.__name__] = (cfg.resume, cfg.get('load_from'), cfg.get('randomness'))
        except launch.LaunchError as error:
            results[case.__name__] = str(error)
    content = dict(results=results, logged=logged, read=len(read), root=root)
    (root / f'rank{rank}.pkl').write_bytes(pickle.dumps(content))


@pytest.fixture(scope='module')
def ranks(tmp_path_factory) -> list[dict]:
    """What both ranks of a gloo group got."""
    root, port = tmp_path_factory.mktemp('start'), free_port()
    started = [CONTEXT.Process(target=run_cases, args=(rank, port, root)) for rank in ('0', '1')]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        process.kill()
    return [pickle.loads((root / f'rank{rank}.pkl').read_bytes()) for rank in '01']


def both(ranks: list[dict], case: Callable) -> list:
    return [rank['results'][case.__name__] for rank in ranks]


def test_all_resume_what_rank_0_has(ranks):
    path = str(ranks[0]['root'] / 'shared/work0/iter_4.pth')
    assert both(ranks, shared) == [(True, path, dict(seed=17))] * 2


def test_no_rank_resumes_what_rank_0_has_not(ranks):
    assert both(ranks, newer_elsewhere) == [(False, None, None)] * 2
    first, second = (rank['logged'][0] for rank in ranks)
    assert first.endswith('work0 has no checkpoint to resume: training starts at iteration 0')
    assert f'{ranks[1]["root"]}/newer_elsewhere/work1/iter_8.pth is on ' in second
    assert 'To resume, let all machines share the folder' in second and len(ranks[1]['logged']) == 1


def test_a_rank_that_has_no_checkpoint_stops_all(ranks):
    first, second = both(ranks, unreadable)
    assert second.startswith('checkpoint work/iter_4.pth (in ') and ') does not exist (' in second
    assert 'Rank 0 starts from it: let all machines share the folder, or copy the file from there to ' in second
    assert first == f'rank 1 cannot start: {second}'


def test_a_rank_that_has_another_file_stops_all(ranks):
    first, second = both(ranks, another_file)
    assert 'is another file here than for rank 0, of iteration 3, not 4 (' in second
    assert first == f'rank 1 cannot start: {second}'
    first, second = both(ranks, other_weights)
    assert 'is another file here than for rank 0 (load_from). Rank 0 starts from it' in second
    assert first == f'rank 1 cannot start: {second}'


def test_copies_are_one_file(ranks):
    assert both(ranks, copied) == [(False, 'dense.pth', None)] * 2


def test_rank_0_that_cannot_start_stops_all(ranks):
    first, second = both(ranks, nothing)
    assert 'fine-tunes' in first and second == 'rank 0 cannot start, and says why'


def test_rank_0_alone_reads_whole_files(ranks):
    assert ranks[0]['read'] > 0 and ranks[1]['read'] == 0


def test_identity_of_a_file(tmp_path):
    one, copy = save(tmp_path / 'a', 4), save(tmp_path / 'b', 4)
    assert checkpoint_identity(one) == checkpoint_identity(copy)
    assert checkpoint_identity(one) != checkpoint_identity(save(tmp_path / 'b', 4, value=1.0))
    torch.save({'state_dict': {}}, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    assert checkpoint_identity(tmp_path / 'old.pth') == str((tmp_path / 'old.pth').stat().st_size)


def test_weights_in_the_old_format(tmp_path):
    path = tmp_path / 'old.pth'
    torch.save({'state_dict': {'a': torch.ones(1)}, 'meta': dict(iter=4, seed=17)}, path,
               _use_new_zipfile_serialization=False)
    cfg = Config(dict(work_dir=str(tmp_path), load_from=str(path)))
    start.set_start(cfg, None)
    assert (cfg.resume, cfg.load_from) == (False, str(path))
    start.set_start(cfg, str(path))
    assert cfg.resume and cfg.randomness == dict(seed=17)


def test_a_test_of_one_checkpoint(tmp_path):
    cfg = Config(dict(load_from='other.pth', resume=True))
    start.set_tested(cfg, str(save(tmp_path, 4)), 'the second argument')
    assert (cfg.load_from, cfg.resume) == (str(tmp_path / 'iter_4.pth'), False)
    with pytest.raises(launch.LaunchError, match=r'no\.pth .*does not exist \(the second argument\)'):
        start.set_tested(cfg, 'no.pth', 'the second argument')


def test_a_folder_for_a_checkpoint(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path)))
    with pytest.raises(launch.LaunchError, match=r'is a folder \(--resume\): name a file\. --resume without a value'):
        start.set_start(cfg, str(tmp_path))
    path = save(tmp_path, 4)
    with pytest.raises(launch.LaunchError, match=rf'is a folder \(--resume\): name a file of it: {path}\. --resume'):
        start.set_start(cfg, str(tmp_path))


def test_a_training_that_would_write_over_another(tmp_path, caplog, capsys):
    cfg = Config(dict(work_dir=str(tmp_path)))
    start.set_start(cfg, None)
    assert 'writes over them' not in capsys.readouterr().out + caplog.text
    path = save(tmp_path, 4)
    start.set_start(cfg, None)
    said = capsys.readouterr().out + caplog.text
    assert f'{tmp_path} has 1 checkpoint of an earlier training, the last of them iter_4.pth, and this one' in said
    assert 'add --resume; to keep it, choose another --work-dir' in said and path.is_file()
    caplog.clear()
    start.set_start(cfg, 'auto')
    assert 'writes over them' not in capsys.readouterr().out + caplog.text and cfg.load_from == str(path)


def test_waiting_for_other_processes_is_said(monkeypatch, capfd):
    """WORLD_SIZE may be more than what was started."""
    monkeypatch.setattr(waiting, 'SILENT_SECONDS', 0.02)
    for name, value in (('WORLD_SIZE', '4'), ('MASTER_ADDR', 'node7'), ('MASTER_PORT', '29511')):
        monkeypatch.setenv(name, value)
    with waiting.said_while_waiting():
        time.sleep(0.3)
    assert 'the 4 processes at node7:29511: still waiting for all of them. Have all been' in capfd.readouterr().err
    monkeypatch.setattr(waiting, 'SILENT_SECONDS', 0.1)
    with waiting.said_while_waiting():
        pass
    time.sleep(0.2)
    assert capfd.readouterr().err == ''


@pytest.mark.slow
def test_processes_that_do_not_come(monkeypatch):
    for name, value in (('WORLD_SIZE', '2'), ('RANK', '0'), ('LOCAL_RANK', '0'), ('MASTER_ADDR', '127.0.0.1'),
                        ('MASTER_PORT', str(free_port()))):
        monkeypatch.setenv(name, value)
    cfg = Config(dict(launcher='pytorch', env_cfg=dict(dist_cfg=dict(backend='gloo', timeout=1))))
    with pytest.raises(launch.LaunchError, match=r'the 2 processes at 127\.0\.0\.1:\d+ cannot be reached: Timed out'):
        start.start_processes(cfg)
