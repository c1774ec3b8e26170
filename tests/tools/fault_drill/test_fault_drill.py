"""The drill's own judgement; its trainings are run by hand, and the same faults in tests/mm."""
import importlib
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import HistoryBuffer

from apt_dense.mm.fault_tolerance.run_comparison import differing, load, logged
from tests import locations

TOOLS = locations.TOOLS / 'fault_drill'


def import_tool(name: str):
    """A script as it is run: what lies beside it can be imported."""
    sys.path.insert(0, str(TOOLS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TOOLS))


fault_drill, cases, runs = map(import_tool, ('fault_drill', 'fault_cases', 'fault_runs'))


def checkpoint(**changes) -> dict:
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    return {'state_dict': {'a': torch.zeros(2)}, 'optimizer': [{'lr': 0.1}, None],
            'message_hub': {'loss': history, 'time': 1.0}, 'meta': {'iter': 4, 'time': 'now'}, **changes}


@pytest.mark.parametrize(('change', 'found'), [
    ({}, set()),
    ({'meta': {'iter': 4, 'time': 'later'}}, set()),
    ({'meta': {'iter': 5, 'time': 'now'}}, {'.meta.iter'}),
    ({'state_dict': {'a': torch.tensor([0.0, 1e-30])}}, {'.state_dict.a'}),
    ({'state_dict': {'a': torch.zeros(2, dtype=torch.float64)[:1]}}, {'.state_dict.a'}),
    ({'state_dict': {'a': torch.zeros(2), 'b': torch.zeros(1)}}, {'.state_dict.b'}),
    ({'optimizer': [{'lr': 0.1}]}, {'.optimizer'}),
    ({'optimizer': [{'lr': 0.2}, None]}, {'.optimizer.0.lr'}),
    ({'message_hub': {'loss': HistoryBuffer([1.0, 2.5], [1, 1]), 'time': 2.0}}, {'.message_hub.loss.1'}),
])
def test_differences_of_checkpoints(change, found):
    assert differing(checkpoint(), checkpoint(**change)) == found


def write_log(work, run, *entries, rest=''):
    (work / run / 'vis_data').mkdir(parents=True)
    (work / run / 'vis_data/scalars.json').write_text(''.join(f'{json.dumps(entry)}\n' for entry in entries) + rest)


def test_logs_of_several_runs_are_one(tmp_path):
    write_log(tmp_path, '1', dict(iter=1, loss=2.0, time=0.1), dict(iter=2, loss=1.5), rest='{"iter": 3, "lo')
    write_log(tmp_path, '2', dict(iter=2, loss=1.5, time=0.2), dict(iter=3, loss=1.0), dict(step=3, mAP=0.5))
    assert logged(tmp_path) == {1: dict(iter=1, loss=2.0), 2: dict(iter=2, loss=1.5), 3: dict(iter=3, loss=1.0)}
    write_log(tmp_path, '3', dict(iter=3, loss=1.25))
    with pytest.raises(ValueError, match=r"3 logs iteration 3 as .*1\.25.*, an earlier run as .*1\.0"):
        logged(tmp_path)


@pytest.fixture
def drill(tmp_path, monkeypatch):
    """A drill whose uninterrupted run is there, and whose trainings do not start."""
    monkeypatch.setattr(runs.subprocess, 'run', lambda *args, **kwargs: None)
    drill = runs.Drill(tmp_path, kills=1, seed=0)
    drill._references[4] = tmp_path / 'reference'
    write_log(tmp_path / 'reference', '1', dict(iter=4, loss=2.0))
    torch.save(checkpoint(), tmp_path / 'reference/iter_4.pth')
    return drill


def test_what_counts_as_lost(drill, tmp_path):
    work = tmp_path / 'work'
    (tmp_path / 'work.log').write_text('the training has died')
    assert drill.lost(work, 4) == 'iter_4.pth, the end: the training has died'
    write_log(work, '1', dict(iter=4, loss=2.0))
    torch.save(checkpoint(), work / 'iter_4.pth')
    assert drill.lost(work, 4) == 'nothing'
    write_log(work, '2', dict(iter=5, loss=2.0))
    assert drill.lost(work, 4) == 'the logs differ'
    write_log(work, '3', dict(iter=4, loss=2.5))
    assert drill.lost(work, 4).startswith('3 logs iteration 4 as')
    torch.save(checkpoint(optimizer=[]), work / 'iter_4.pth')
    assert drill.lost(work, 4) == '1 entries differ: .optimizer'


def test_a_traceback_is_no_clear_message(tmp_path):
    log = tmp_path / 'work.log'
    log.write_text('noise\nerror: /some/where/work is in use by process 7 on node-3.site: wait\n')
    assert runs.message(tmp_path / 'work') == 'error: work is in use by process N on HOST: wait'
    log.write_text('Traceback (most recent call last):\nOSError: [Errno 28]\n')
    assert runs.message(tmp_path / 'work').startswith('no clear message: Traceback')


def test_paths_lose_their_folders_and_records_do_not():
    assert runs.plain('of /a/b/iter_8.pth: archive/data/665 is wrong (/a/.train.lock)') == (
        'of iter_8.pth: archive/data/665 is wrong (.train.lock)')


def test_code_in_the_drills_checkpoint_would_run(tmp_path):
    torch.save(checkpoint(extra=cases._Code(tmp_path / 'marker')), tmp_path / 'code.pth')
    with pytest.raises(Exception, match='mkdir'):
        load(tmp_path / 'code.pth')
    assert not (tmp_path / 'marker').exists()
    torch.load(tmp_path / 'code.pth', weights_only=False)
    assert (tmp_path / 'marker').is_dir()


@pytest.mark.parametrize(('lost', 'status'), [('nothing', 0), ('2 entries differ: .a, .b', 1)])
def test_table_and_status(drill, monkeypatch, capsys, tmp_path, lost, status):
    monkeypatch.setattr(fault_drill, 'Drill', lambda folder, kills, seed: (kills, seed))
    monkeypatch.setattr(fault_drill, 'CASES', {
        'good': lambda drill: runs.Outcome(f'tried {drill}', 'it held', 'nothing'),
        'bad': lambda drill: runs.Outcome('tried more', 'it broke', lost)})
    monkeypatch.setattr(sys, 'argv', ['fault_drill.py', '--kills', '3', '--keep', str(tmp_path / 'kept')])
    assert fault_drill.main() == status
    assert capsys.readouterr().out.split('\n\n')[1].splitlines() == [
        '| tried | happened | lost |', '|---|---|---|', '| tried (3, 0) | it held | nothing |',
        f'| tried more | it broke | {lost} |']
    assert os.listdir(tmp_path / 'kept') == []


def test_a_case_that_fails_is_a_loss(drill, monkeypatch, capsys, tmp_path):
    def fail(drill):
        raise OSError('no such program')

    monkeypatch.setattr(fault_drill, 'Drill', lambda folder, kills, seed: None)
    monkeypatch.setattr(fault_drill, 'CASES', {'bad': fail})
    monkeypatch.setattr(sys, 'argv', ['fault_drill.py', '--keep', str(tmp_path / 'kept')])
    assert fault_drill.main() == 1
    assert '| bad | OSError: no such program | unknown |' in capsys.readouterr().out


def test_an_interrupt_leaves_nothing(monkeypatch, tmp_path):
    def interrupt(drill):
        raise KeyboardInterrupt

    monkeypatch.setattr(fault_drill, 'Drill', lambda folder, kills, seed: None)
    monkeypatch.setattr(fault_drill, 'CASES', {'slow': interrupt})
    monkeypatch.setattr(fault_drill.tempfile, 'mkdtemp', lambda prefix: str(tmp_path / prefix))
    monkeypatch.setattr(sys, 'argv', ['fault_drill.py'])
    with pytest.raises(KeyboardInterrupt):
        fault_drill.main()
    assert os.listdir(tmp_path) == []


def test_a_training_ends_with_its_context(drill, monkeypatch, tmp_path):
    start = runs.subprocess.Popen
    monkeypatch.setattr(runs.subprocess, 'Popen', lambda command, **options: start(['sleep', '60']))
    with pytest.raises(KeyboardInterrupt), drill.started(tmp_path / 'work', 4) as process:
        raise KeyboardInterrupt
    assert process.poll() == -9


class Pretended:
    """A drill whose trainings do nothing but say something and end with the next of some statuses; nothing is lost."""

    def __init__(self, folder: Path, said: list[str], statuses: list[int]):
        self.folder, self.data, self.guarded, self.said = folder, folder / 'data', None, said
        self.statuses = iter(statuses)
        (self.data / 'train').mkdir(parents=True)
        (self.data / 'train' / cases.BROKEN).write_bytes(b'an image')

    def reference(self, iterations: int) -> Path:
        return self.folder / 'reference'

    def prepare(self, name: str, iterations: int) -> Path:
        (self.folder / name).mkdir()
        (self.folder / name / '.train.lock').touch()
        torch.save(checkpoint(), self.folder / name / f'iter_{iterations}.pth')
        return self.folder / name

    @contextmanager
    def started(self, work: Path, iterations: int, **settings):
        status = self.run(work, iterations)
        yield SimpleNamespace(pid=0, poll=lambda: status, wait=lambda: status, send_signal=lambda number: None)

    def run(self, work: Path, iterations: int, **settings) -> int:
        work.mkdir(exist_ok=True)
        torch.save(checkpoint(), work / f'iter_{iterations}.pth')
        with open(runs.log_of(work), 'a') as log:
            log.write(f'{self.said.pop(0) if self.said else ""}\n')
        return next(self.statuses)

    def lost(self, work: Path, iterations: int) -> str:
        return 'nothing'

    finish = runs.Drill.finish


CASES = {  # what each training says, and its status, where all is well
    'signal_to_all': (['stopped by SIGTERM after iteration 5; saved'], [75, 0]),
    'truncated_checkpoint': (['iter_8.pth is passed over: damaged. resumed epoch: 0, iter: 4'], [0]),
    'flipped_bit': (['iter_8.pth is passed over: damaged. resumed epoch: 0, iter: 4'], [0]),
    'code_in_checkpoint': (['error: it holds more than plain data and is not loaded'], [2, 0]),
    'two_runs': (['Iter(train)', 'error: work directory shared is in use by process 7 on a: no'], [0, 2]),
    'broken_image': (['error: bad sample: /a/000007.jpg'], [2, 0]),
    'skipped_image': (['bad sample skipped 000007.jpg\nskipped so far: 1 bad samples'], [0]),
}


@pytest.mark.parametrize('name', CASES)
def test_what_a_case_must_show(name, monkeypatch, tmp_path):
    """Every other status is a loss, and so is another message."""
    monkeypatch.setattr(cases.os, 'killpg', lambda *args: None)
    said, statuses = CASES[name]
    assert cases.CASES[name](Pretended(tmp_path / 'good', [*said], statuses)).lost == 'nothing'
    for number, status in enumerate(statuses):
        others = [*statuses[:number], 1, *statuses[number + 1:]]
        lost = cases.CASES[name](Pretended(tmp_path / f'status{number}', [*said], others)).lost
        assert f'status 1, not {status}' in lost
    assert cases.CASES[name](Pretended(tmp_path / 'silent', [], statuses)).lost != 'nothing'


def test_a_full_disk_and_an_unwritable_directory(monkeypatch, tmp_path):
    """Without mounts."""
    monkeypatch.setattr(cases.subprocess, 'run', lambda *args, **kwargs: SimpleNamespace(returncode=1))
    monkeypatch.setattr(cases.os, 'getuid', lambda: 1000)
    for name, said in (('full_disk', 'error: iter_12.pth cannot be written: File too large'),
                       ('unwritable_directory', 'error: work directory unwritable cannot be written: no')):
        for status, text, lost in ((2, said, 'nothing'), (0, said, 'status 0, not 2'), (2, '', 'no message "')):
            folder = tmp_path / f'{name}{status}{len(text)}'
            drill = Pretended(folder, [text], [status, 0])
            drill.run = lambda work, *args, run=drill.run, **settings: run(work, 8)  # writes nothing new
            drill.reference = lambda iterations, drill=drill: drill.prepare('reference', iterations)
            assert lost in cases.CASES[name](drill).lost
