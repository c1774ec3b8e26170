"""tools/experiments/run.py: cells end to end, cached, resumed, failed."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.locations import TOOLS
from tests.tools.experiments.conftest import modules

Cell, Patches, Training = modules.cells.Cell, modules.cells.Patches, modules.cells.Training
SCRATCH, UNTRAINED = modules.cells.SCRATCH, modules.cells.UNTRAINED
PATCHES = Patches('entropy', 0.5, (1.0,), 3)
SHORT = Training('dense', 0.5, 0.1)
KILL_ONCE = """
import os, signal
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class KillOnce(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        marker = Path(__file__).with_name('killed')
        if runner.iter == 2 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""


def cell(patches=PATCHES, training=SHORT, task='det', seed=0):
    return Cell(task, 'tiny', patches, training, seed)


def results_of(tiny):
    lines = [json.loads(line) for line in tiny.results.read_text().splitlines()]
    return {Cell.from_json(line['cell']).name: line for line in lines}


@pytest.mark.slow
def test_detection_from_data_to_figures(tiny, capsys):
    resizing = cell(replace(PATCHES, detail_branch='none'), UNTRAINED)
    added = cell(training=Training('dense', 0.5, 1.0, 'added'))
    assert tiny.main([resizing, added]) == 0
    dense = cell(None, SCRATCH)
    assert tiny.started == [dense.name, resizing.name, added.name]  # the dense model first, though not in the grid
    found = results_of(tiny)
    for result in found.values():
        assert {f'{kind}_mAP{size}' for kind in ('bbox', 'segm') for size in ('', '_50', '_s', '_m', '_l')} <= set(
            result['metrics'])
        assert result['status'] == 'done' and result['code'] and result['seconds']['process'] > 0
        assert len(result['commit']) == 12
    assert found[dense.name]['kept'] == {'all': 1.0, 'content': 1.0}
    assert found[dense.name]['times'] is None and found[dense.name]['thresholds'] is None
    assert [iteration for iteration, _ in found[dense.name]['curve']] == [1, 2]
    assert found[dense.name]['iterations'] == 2 and found[added.name]['iterations'] == 1
    for name in (resizing.name, added.name):
        assert len(found[name]['thresholds']) == 2 and 0.0625 < found[name]['kept']['content'] < 1
        assert found[name]['kept']['all'] < 1 and found[name]['parent'] == found[dense.name]['hash']
        assert {(kind, time['rounds']) for kind, time in found[name]['times'].items()} == {('test', 1), ('train', 1)}
        assert all(time['speedup'] == pytest.approx(time['dense'] / time['cell'], rel=1e-3)
                   for time in found[name]['times'].values())
    assert [path.parent.name for path in tiny.work.glob('*/*.pth')] == [
        f'{dense.name}-{found[dense.name]["hash"][:8]}']  # of the others no weights are kept
    assert 'about 0.0 h left' in capsys.readouterr().out

    tiny.started.clear()
    assert tiny.main([resizing, added]) == 0
    assert not tiny.started
    assert capsys.readouterr().out.count('(cached)') == 3


def test_beyond_the_paper(tiny):
    grid = [cell(task='seg', training=replace(SHORT, extra=extra)) for extra in ('warm', 'distilled')]
    assert tiny.main(grid) == 0
    found = results_of(tiny)
    warm, distilled = (found[one.name] for one in grid)
    assert warm['thresholds'] == distilled['thresholds']  # in testing
    logs = [''.join(path.read_text() for path in tiny.work.glob(f'{one.name}-*/**/*.log')) for one in grid]
    assert 'WarmThresholdsHook' in logs[0] and 'distill=dict(' not in logs[0]
    assert 'distill=dict(' in logs[1] and 'WarmThresholdsHook' not in logs[1]


def test_segmentation_and_what_a_changed_config_does(tiny, capsys):
    short, dense = cell(task='seg'), cell(None, SCRATCH, 'seg')
    assert tiny.main([short]) == 0
    first = results_of(tiny)
    assert {'mIoU', 'aAcc', 'boundary_IoU'} <= set(first[short.name]['metrics'])
    path = tiny.configs / 'seg.py'
    path.write_text(path.read_text() + "optim_wrapper = dict(optimizer=dict(lr=1e-4))\n")
    modules.cell_config._read.cache_clear()
    modules.cell_identity.cell_hash.cache_clear()
    tiny.started.clear()
    assert tiny.main([short], '--list') == 0
    assert capsys.readouterr().out.count('\nstale ') == 2
    assert tiny.main([short], '--keep-stale') == 0
    assert not tiny.started
    assert tiny.main([short]) == 0
    assert tiny.started == [dense.name, short.name]
    assert results_of(tiny)[short.name]['hash'] != first[short.name]['hash']
    assert len(list(tiny.work.glob(f'{dense.name}-*'))) == 1  # the old weights are gone


def test_weights_that_are_not_here_are_made_again(tiny):
    """As in a fresh clone, which has the results alone; and the figures are the same."""
    dense = cell(None, SCRATCH, 'seg')
    assert tiny.main([dense]) == 0
    before = results_of(tiny)[dense.name]
    for path in tiny.work.glob('*/weights.pth'):
        path.unlink()
    tiny.started.clear()
    assert tiny.main([dense]) == 0
    assert not tiny.started  # nobody starts from them
    assert tiny.main([cell(task='seg', training=UNTRAINED, patches=replace(PATCHES, detail_branch='none'))]) == 0
    assert tiny.started[0] == dense.name and len(tiny.started) == 2
    after = results_of(tiny)[dense.name]
    assert (after['metrics'], after['curve'], after['hash']) == (before['metrics'], before['curve'], before['hash'])


@pytest.mark.slow
def test_a_killed_cell_goes_on_to_the_same_figures(tiny, monkeypatch, capsys):
    """Killed in a process of its own, after a checkpoint."""
    dense, processes = cell(None, SCRATCH, 'seg'), iter([tiny.in_own_process, tiny.in_this_process,
                                                         tiny.in_this_process])
    (tiny.configs / 'kill_once.py').write_text(KILL_ONCE)
    path = tiny.configs / 'seg.py'
    path.write_text(path.read_text().replace('max_iters = 2', 'max_iters = 4') + (
        "custom_imports = dict(imports=['apt_dense.mm.seg', 'boundary_iou', 'kill_once'])\n"
        "custom_hooks = [*_base_.custom_hooks, dict(type='KillOnce')]\n"
        "default_hooks = dict(checkpoint=dict(interval=2))\n"))
    monkeypatch.setenv('PYTHONPATH', str(tiny.configs))
    monkeypatch.syspath_prepend(tiny.configs)
    monkeypatch.setattr(modules.cell_queue, '_run_process', lambda work_dir: next(processes)(work_dir))
    assert tiny.main([dense]) == 0
    killed = results_of(tiny)[dense.name]
    assert 'was ended by signal 9' in capsys.readouterr().out
    assert killed['resumed_at'] == 2
    tiny.results.unlink()
    for path in tiny.work.glob('*/result.json'):
        path.unlink()
    assert tiny.main([dense]) == 0
    whole = results_of(tiny)[dense.name]
    assert whole['resumed_at'] == 0
    assert (whole['metrics'], whole['curve']) == (killed['metrics'], killed['curve'])
    assert [iteration for iteration, _ in whole['curve']] == [1, 2, 3, 4]


def test_a_failed_cell_is_recorded_and_the_next_one_runs(tiny, capsys):
    impossible, possible = cell(replace(PATCHES, kept=0.01), task='seg'), cell(task='seg')
    assert tiny.main([impossible, possible]) == 1
    found = results_of(tiny)
    assert found[impossible.name]['status'] == 'failed'
    assert 'ValueError: target 0.01 is out of reach' in found[impossible.name]['error']
    assert found[possible.name]['status'] == 'done'
    assert f'failed: {impossible.name}' in capsys.readouterr().out
    tiny.started.clear()
    assert tiny.main([impossible, possible]) == 1
    assert not tiny.started
    assert tiny.main([impossible, possible], '--retry-failed') == 1
    assert tiny.started == [impossible.name]


def test_a_cell_that_failed_after_its_training_is_not_trained_again(tiny, monkeypatch):
    dense, test = cell(None, SCRATCH, 'seg'), modules.run_cell.Runner.test

    def fail(runner):
        raise OSError('disk full')

    path = tiny.configs / 'seg.py'
    path.write_text(path.read_text() + 'default_hooks = dict(checkpoint=dict(interval=2))\n')
    monkeypatch.setattr(modules.run_cell.Runner, 'test', fail)
    assert tiny.main([dense]) == 1
    assert results_of(tiny)[dense.name]['error'] == 'OSError: disk full'
    monkeypatch.setattr(modules.run_cell.Runner, 'test', test)
    assert tiny.main([dense], '--retry-failed') == 0
    retried = results_of(tiny)[dense.name]
    assert retried['resumed_at'] == retried['iterations'] == 2
    tiny.results.unlink()
    shutil.rmtree(tiny.work)
    assert tiny.main([dense]) == 0
    whole = results_of(tiny)[dense.name]
    assert (whole['metrics'], whole['curve']) == (retried['metrics'], retried['curve'])


def test_what_starts_from_a_failed_cell_is_left_out(tiny, capsys):
    path = tiny.configs / 'seg.py'
    path.write_text(path.read_text() + "model['decode_head']['in_index'] = [9]\n")
    assert tiny.main([cell(task='seg')]) == 1
    assert tiny.started == [cell(None, SCRATCH, 'seg').name]
    assert f'{cell(task="seg").name}: left out, {cell(None, SCRATCH, "seg").name} has failed' in capsys.readouterr().out


def test_a_process_that_dies_again_and_again_has_failed(tiny, monkeypatch):
    dense, ends = cell(None, SCRATCH, 'seg'), []

    def die(work_dir):
        ends.append(work_dir)
        (work_dir / 'log.txt').write_text('reading\nout of memory\n')
        return -signal.SIGKILL

    monkeypatch.setattr(modules.cell_queue, '_run_process', die)
    assert tiny.main([dense]) == 1
    assert len(ends) == modules.cell_queue.MAX_KILLS
    assert results_of(tiny)[dense.name]['error'] == 'exit status -9, out of memory'


def test_a_result_that_was_not_recorded_is_not_made_again(tiny):
    """Killed between the end of a cell and the next line of the file."""
    dense = cell(None, SCRATCH, 'seg')
    assert tiny.main([dense]) == 0
    before = results_of(tiny)
    tiny.results.unlink()
    tiny.started.clear()
    assert tiny.main([dense]) == 0
    assert not tiny.started and results_of(tiny) == before


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_stops_the_run_and_its_cell(tmp_path, tiny, number):
    """SIGTERM ends run.py with status 75; when it is killed, the kernel ends its cell's process."""
    waiting, script = tmp_path / 'waiting', tmp_path / 'main.py'
    code = f'import os, pathlib, time; pathlib.Path({str(waiting)!r}).write_text(str(os.getpid())); time.sleep(60)'
    script.write_text(
        f'import sys; sys.path[:0] = [{str(TOOLS / "experiments")!r}]\n'
        'import cell_queue, run\n'
        'start = cell_queue.subprocess.Popen\n'
        f'cell_queue.subprocess.Popen = lambda command, **options: start([sys.executable, "-c", {code!r}], **options)\n'
        'cell_queue.make_dataset = lambda *arguments: cell_queue.Path("/nowhere")\n'
        f'sys.exit(run.main(["dense", "--results", {str(tiny.results)!r}, "--work-dir", {str(tiny.work)!r}]))\n')
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, 'PYTHONPATH': str(TOOLS.parent)})
    assert soon(lambda: waiting.exists() and waiting.read_text())
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == (75 if number == signal.SIGTERM else -number)
    assert ('the same command goes on from here' in output) == (number == signal.SIGTERM)
    assert soon(lambda: not has_process(int(waiting.read_text())))
    assert not tiny.results.exists()


def soon(condition, seconds=60):
    """True as soon as the condition holds."""
    end = time.perf_counter() + seconds
    while not condition():
        if time.perf_counter() > end:
            return False
        time.sleep(0.05)
    return True


def has_process(pid):
    """True if it runs; one that has ended and waits for its parent does not."""
    status = Path(f'/proc/{pid}/status')
    return status.exists() and 'State:\tZ' not in status.read_text()


def test_two_runs_in_one_place(tiny, capsys):
    tiny.work.mkdir()
    code = ('import fcntl, sys; file = open(sys.argv[1], "w"); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); '
            'sys.stdin.read()')
    other = subprocess.Popen([sys.executable, '-c', code, tiny.work / '.lock'], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    other.stdout.readline()
    try:
        assert tiny.main([cell(None, SCRATCH)]) == 2
    finally:
        other.communicate()
    assert 'another run is at work in' in capsys.readouterr().err and not tiny.started


def test_code_that_changes_in_the_middle_ends_the_run(tiny, monkeypatch, capsys):
    codes = iter(['a', 'a', 'b'])
    monkeypatch.setattr(modules.cell_queue, 'code_hash', lambda: next(codes))
    assert tiny.main([cell(task='seg')]) == 2
    assert tiny.started == [cell(None, SCRATCH, 'seg').name]
    assert 'the code has changed since the start' in capsys.readouterr().err
