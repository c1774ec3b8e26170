"""The drill's own judgement; its trainings are run by hand, and the same faults in tests/mm."""
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer

from apt_dense.mm.run_comparison import differing, load, logged

PATH = Path(__file__).parents[1] / 'tools/analysis_tools/fault_drill.py'
spec = importlib.util.spec_from_file_location('fault_drill', PATH)
fault_drill = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fault_drill)


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
    monkeypatch.setattr(fault_drill.subprocess, 'run', lambda *args, **kwargs: None)
    drill = fault_drill.Drill(tmp_path, kills=1, seed=0)
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
    log.write_text('noise\nerror: /some/where/work is in use by process 7\n')
    assert fault_drill.message(tmp_path / 'work') == 'error: work is in use by process 7'
    log.write_text('Traceback (most recent call last):\nOSError: [Errno 28]\n')
    assert fault_drill.message(tmp_path / 'work').startswith('no clear message: Traceback')


def test_code_in_the_drills_checkpoint_would_run(tmp_path):
    torch.save(checkpoint(extra=fault_drill._Code(tmp_path / 'marker')), tmp_path / 'code.pth')
    with pytest.raises(Exception, match='mkdir'):
        load(tmp_path / 'code.pth')
    assert not (tmp_path / 'marker').exists()
    torch.load(tmp_path / 'code.pth', weights_only=False)
    assert (tmp_path / 'marker').is_dir()


@pytest.mark.parametrize(('lost', 'status'), [('nothing', 0), ('2 entries differ: .a, .b', 1)])
def test_table_and_status(drill, monkeypatch, capsys, tmp_path, lost, status):
    monkeypatch.setattr(fault_drill, 'Drill', lambda folder, kills, seed: (kills, seed))
    monkeypatch.setattr(fault_drill, 'CASES', {
        'good': lambda drill: fault_drill.Outcome(f'tried {drill}', 'it held', 'nothing'),
        'bad': lambda drill: fault_drill.Outcome('tried more', 'it broke', lost)})
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
