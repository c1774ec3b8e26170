"""The benchmarks' pages are what benchmark_docs.py makes of the JSON files."""
import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from apt_dense.benchmark import report, summary
from apt_dense.benchmark.__main__ import cases_of, parse_args
from apt_dense.benchmark.cases import Case
from apt_dense.benchmark.suites import PAPER
from tests.locations import ROOT, load_tool

tool = load_tool('benchmark/benchmark_docs.py')
FOLDER = ROOT / 'docs/benchmarks'
TABLES = (FOLDER / 'tables.md').read_text(encoding='utf-8')
GOALS = (ROOT / 'docs/benchmarks.md').read_text(encoding='utf-8')


BACKBONE = [name for name, run in tool.RUNS.items() if run.program not in (tool.SCORING, tool.WHOLE)]


@pytest.mark.parametrize('name', tool.RUNS)
def test_the_page_is_up_to_date(name):
    """Nobody has edited a table by hand, and every command is one that the benchmark takes."""
    run = tool.RUNS[name]
    assert tool.rewrite(TABLES, name, tool.section(name, run, FOLDER)) == TABLES
    if name in BACKBONE:
        assert cases_of(parse_args([*run.photos, *run.arguments.split(), '--json', 'x.json']))
    assert all(hasattr(report, f'{table}_table') for table in run.tables)


def test_the_summary_is_up_to_date():
    assert tool.rewrite(GOALS, 'summary', summary.table(FOLDER)) == GOALS


@pytest.mark.parametrize('name', [name for name in tool.RUNS if (FOLDER / f'{name}.json').is_file()])
def test_the_figures_are_of_the_command(name):
    """The rows of the file are those that its command asks for, so a changed suite must be measured again."""
    content = json.loads((FOLDER / f'{name}.json').read_text())
    run = tool.RUNS[name]
    assert run.arguments in content['environment']['command']
    if name not in BACKBONE:
        return
    wanted = [{**asdict(case), 'photos': [Path(photo).name for photo in case.photos]}
              for _, case in cases_of(parse_args([*run.photos, *run.arguments.split()]))]
    wanted = json.loads(json.dumps(wanted))  # tuples as lists
    found = [{**asdict(Case()), **row['case']} for row in content['rows']]  # options that came later had their default
    assert found == ([row for row in wanted if row in found] if run.on_gpu else wanted), 'only a GPU may be too small'


def test_the_papers_images_per_second_stand_with_its_gpu():
    """On another machine only the ratios mean something, so each section that quotes them names the GPU."""
    quoting = 0
    for path in (ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')):
        text = path.read_text(encoding='utf-8')
        if path.name == 'results.md':  # its own tables have so many figures that some are the paper's by chance
            text = re.sub(r'<!-- (\w+) -->.*?<!-- end of \1 -->', '', text, flags=re.DOTALL)
        for part in text.split('\n## '):
            if any(all(f' {figure:.2f} ' in part for figure in row) for row in PAPER.values()):
                quoting += 1
                assert 'RTX A6000' in part, path
    assert quoting


@pytest.mark.slow
def test_a_failed_run_costs_no_other(tmp_path, monkeypatch, capsys):
    (tmp_path / 'docs/benchmarks').mkdir(parents=True)
    (tmp_path / 'docs/benchmarks.md').write_text('<!-- summary -->\n<!-- end of summary -->\n')
    page = tmp_path / 'docs/benchmarks/tables.md'
    page.write_text('<!-- good -->\n<!-- end of good -->\n<!-- bad -->\n<!-- end of bad -->\n<!-- gpu -->\n'
                    '<!-- end of gpu -->\n')
    small = '--model Ti --geometry demo --img-size 256 --depth 1 --repeats 1 --no-memory --no-stages'
    (tmp_path / 'docs/benchmarks/bad.json').write_text(json.dumps(dict(rows=[], environment=dict(
        date='long ago', torch='1.0'), left_out=['a row'])))
    monkeypatch.setattr(tool, 'RUNS', {'bad': tool.Run(f'{small} --kept 0.7 0.0001'), 'good': tool.Run(small),
                                       'gpu': tool.Run('--suite gpu', needs=('nowhere.pth',))})
    monkeypatch.setattr(tool, 'ROOT', tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    assert tool.main(['--only', 'bad', 'good', 'gpu']) == 1
    captured = capsys.readouterr()
    assert 'error: bad failed' in captured.err and '[gpu] left out: needs' in captured.out
    assert '[kept] no chart: one of kept,' in captured.out
    assert 'not measured' in (tmp_path / 'docs/benchmarks.md').read_text()
    good, bad = page.read_text().split('<!-- bad -->')
    assert '| EVA-02-Ti first 1 blocks demo 256 |' in good and 'long ago, no row' in bad and 'a row.' in bad
    assert len(json.loads((tmp_path / 'docs/benchmarks/bad.json.part').read_text())['rows']) == 1


def test_summary_of_rows_and_of_nothing(tmp_path):
    def row(model, speedup, **others):
        return dict(title=f'EVA-02-{model} det 1536', kept=0.7, case=asdict(Case(model)), **others,
                    apt=dict(speedup=speedup, ideal=2.0, stages=dict(score=0.1, layout=0.05)),
                    dense=dict(seconds=dict(median=10.0)))

    nothing = summary.table(tmp_path)
    assert all(words.endswith('not measured') for words in cells(nothing, 2)) and set(cells(nothing, 3)) == {'-'}
    for name, rows in dict(overhead=[row('B', 0.99), row('L', 0.97)], kept=[row('B', 1.95)]).items():
        (tmp_path / f'{name}.json').write_text(json.dumps(dict(rows=rows)))
    found = summary.table(tmp_path)
    assert [cells(found, 2)[index] for index in (0, 2, 4)] == [
        'B det 1536: 0.990; L det 1536: 0.970; overhead_512: not measured',
        'B det 1536: 0.975 (kept 0.7); kept_l: not measured', 'B det 1536: 1.50 %; L det 1536: 1.50 %']
    assert [cells(found, 3)[index] for index in (0, 1, 2, 4)] == ['no', '-', '-', 'no']
    (tmp_path / 'kept_l.json').write_text(json.dumps(dict(rows=[row('L', 1.94)])))
    assert cells(summary.table(tmp_path), 3)[2] == 'yes'
    (tmp_path / 'kept_l.json').write_text(json.dumps(dict(rows=[])))  # nothing fitted the GPU
    assert cells(summary.table(tmp_path), 3)[2] == '-'
    (tmp_path / 'kept_l.json').write_text(json.dumps(dict(rows=[row('L', 1.94)], left_out=['a batch of 8'])))
    found = summary.table(tmp_path)
    assert cells(found, 3)[2] == '-' and cells(found, 2)[2].endswith('kept_l: not all rows')


@pytest.mark.parametrize(('speedup', 'met'), [(1.2, ['no', 'yes']), (1.3, ['yes', 'yes']), (1.14, ['no', 'no'])])
def test_summary_of_whole_models(tmp_path, speedup, met):
    results = dict(apt=dict(speedup=speedup, kept=0.7), dense=dict(kept=1.0))
    for name in ('whole_det', 'whole_seg'):
        (tmp_path / f'{name}.json').write_text(json.dumps(dict(results=results)))
    found = summary.table(tmp_path, summary.GPU_GOALS)
    assert cells(found, 3) == ['-'] * 4 + met
    assert cells(found, 2)[4:] == [f'{name}: {speedup:.3f} (kept 0.70)' for name in ('whole_det', 'whole_seg')]


def cells(table: str, column: int) -> list[str]:
    """A column of a Markdown table."""
    return [line.split('|')[column + 1].strip() for line in table.splitlines()[2:]]


def test_rewrite():
    page = 'a\n<!-- x -->\nold\n<!-- end of x -->\nb\n<!-- y -->\n<!-- end of y -->\n'
    assert tool.rewrite(page, 'x', r'new \1') == page.replace('old\n', '\nnew \\1\n\n')
    with pytest.raises(ValueError, match='has no <!-- z -->'):
        tool.rewrite(page, 'z', '')


def test_a_run_without_figures_says_so(tmp_path):
    text = tool.section('gpu', tool.RUNS['gpu'], tmp_path)
    assert text.startswith('Not measured.') and 'python -m apt_dense.benchmark --suite gpu' in text
