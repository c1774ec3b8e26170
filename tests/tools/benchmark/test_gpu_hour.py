"""The bookkeeping of the first hour on a GPU, with steps of milliseconds; and that every command is one that exists."""
import json
import shlex
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from apt_dense.benchmark import attention
from apt_dense.benchmark.__main__ import cases_of, parse_args
from apt_dense.benchmark.cases import Case
from tests.locations import ROOT, TOOLS, load_tool

hour = load_tool('benchmark/gpu_hour.py')
ROW = dict(title='EVA-02-L det 1536', kept=0.7, case=asdict(Case('L', new_images=True)), batch=1, device='a GPU',
           thresholds=[1.0], group='forward', cells=9216, tokens=[6451],
           dense=dict(seconds=dict(median=2.0, min=2.0, max=2.0, times=[2.0])),
           apt=dict(speedup=0.99, speedup_range=[0.99, 0.99], ideal=1.0,
                    seconds=dict(median=1.0, min=1.0, max=1.0, times=[1.0])))
SCRIPTS = dict(good=f'''
import json, sys
json.dump(dict(environment={{}}, rows=[{ROW!r}]), open(sys.argv[1], 'w'))''',
               partly=f'''
import json, sys
json.dump(dict(environment={{}}, rows=[{ROW!r}]), open(sys.argv[1] + '.part', 'w'))
raise SystemExit('the second row is bad')''', slow='''
import subprocess, sys, time
print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True)
time.sleep(60)''', refuses='''
import sys
print('error: no such kernel', file=sys.stderr)
raise SystemExit(2)''')


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(steps, *options) -> exit status, records by name, report, what was printed."""
    for name, script in SCRIPTS.items():
        (tmp_path / f'{name}.py').write_text(script)

    def run(steps: dict[str, tuple], *options: str) -> tuple[int, dict, str, object]:
        plan = [hour.Step(name, (f'{tmp_path}/{script}.py OUT/{name}.json',), *rest)
                for name, (script, *rest) in steps.items()]
        monkeypatch.setattr(hour, 'steps', lambda device, quick: plan)
        status = hour.main(['--out', str(tmp_path / 'out dir'), '--device', 'cpu', '--quick', *options])
        records = json.loads((tmp_path / 'out dir/steps.json').read_text())
        return (status, {record['name']: record for record in records},
                (tmp_path / 'out dir/report.md').read_text(), capsys.readouterr())

    return run


def test_a_failed_step_costs_no_other(run, tmp_path):
    status, records, page, printed = run(dict(
        no_reduction=('good', 1, (), 'benchmark'), kept=('partly', 1, (), 'benchmark'), odd=('refuses', 1),
        absent=('good', 1, ('a_module_of_nobody',)), no_reduction_train=('good', 1, (), 'benchmark')))
    assert {name: record['state'] for name, record in records.items()} == dict(
        no_reduction='done', kept='failed', odd='left out', absent='left out', no_reduction_train='done')
    assert records['kept']['why'] == 'the second row is bad' and records['odd']['why'] == 'no such kernel'
    assert records['absent']['why'] == 'needs a_module_of_nobody'
    assert status == 1 and 'error: kept: see ' in printed.err
    out = tmp_path / 'out dir'
    assert json.loads((out / 'kept.json').read_text())['left_out'] and not (out / 'kept.json.part').exists()
    assert (out / 'no_reduction.png').exists() and (out / 'logs/kept.txt').read_text().startswith('$ ')
    goals = [line for line in page.splitlines() if line.startswith(('| Throughput', '| Speed-up', '| End'))]
    assert [line.split('|')[4].strip() for line in goals] == ['yes', 'yes', '-', '-', '-', '-']
    assert 'kept: not all rows' in goals[2] and 'whole_det: not measured' in goals[4]
    assert '## no_reduction_train\n\n```bash\npython ' in page and '![kept](kept.png)' in page
    assert goals[0] in printed.out and 'mean nothing' in page, 'a rehearsal says what it is'


def test_time_that_is_over_stops_a_step_and_what_it_began(run, tmp_path):
    status, records, _, _ = run(dict(slow=('slow', 0.05), later=('good', 1)))
    assert records['slow']['state'] == 'stopped' and 2 < records['slow']['seconds'] < 30
    assert records['later']['state'] == 'done' and status == 1
    child = Path('/proc', (tmp_path / 'out dir/logs/slow.txt').read_text().splitlines()[-1], 'stat')
    assert not child.exists() or child.read_text().split()[2] == 'Z', 'nobody may be left on the GPU'


def test_steps_without_time_are_left_out(run):
    status, records, _, _ = run(dict(first=('good', 1)), '--minutes', '0')
    assert (records['first']['state'], records['first']['why'], status) == ('left out', 'no time was left', 0)


def test_a_folder_is_used_again_for_chosen_steps_only(run, capsys):
    steps = dict(good=('good', 1), kept=('partly', 1, (), 'benchmark'))
    run(steps)
    with pytest.raises(SystemExit):
        run(steps)
    assert 'holds a run already: choose another --out' in capsys.readouterr().err
    steps['kept'] = ('good', 1, (), 'benchmark')
    status, records, page, _ = run(steps, '--only', 'kept')
    assert status == 0 and list(records) == ['good', 'kept'] and 'not all rows' not in page


@pytest.mark.parametrize(('options', 'message'), [
    (['--device', 'cpu'], 'would take days: add --quick'), (['--quick', '--only', 'nothing'], 'the steps are setup, '),
    ([], 'finds no GPU: run it where one is')])
def test_what_cannot_run_is_refused(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit):
        hour.main(['--out', str(tmp_path / 'out'), *options])
    assert message in capsys.readouterr().err and not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('device', 'quick'), [('cuda', False), ('cuda', True), ('cpu', True)])
def test_every_command_is_one_that_exists(device, quick):
    plan = list(hour.steps(device, quick))
    assert len({step.name for step in plan}) == len(plan)
    for words in (words for step in plan for words in step.command_lines(Path('x y'))):
        if words[1:3] == ['-m', 'apt_dense.benchmark']:
            cases = [case for _, case in cases_of(parse_args(words[3:]))]
            assert cases and {case.device for case in cases} == {device}
            assert all(case.new_images for case in cases) or '--profile' in words
        elif words[1:3] == ['-m', 'pytest']:
            assert all((ROOT / word).exists() for word in words if word.startswith('tests/'))
        elif words[1] == '-m':
            assert words[2] == attention.__name__
        else:
            assert (ROOT / words[1]).is_file()
    goals = {name for goal in hour.summary.GPU_GOALS for name in goal.files}
    assert goals <= {step.name for step in plan if step.kind}, 'a goal that nothing measures'


def test_the_shell_script_runs_it():
    found = subprocess.run([TOOLS / 'benchmark/gpu_hour.sh', '--help'], capture_output=True, text=True,
                           env={'PYTHON': shlex.quote(hour.sys.executable), 'PATH': '/usr/bin:/bin'})
    assert found.returncode == 0 and '--minutes' in found.stdout
