"""docs/benchmarks.md is what benchmark_docs.py makes of its JSON files."""
import importlib.util
import json
from pathlib import Path

import pytest

from apt_dense.benchmark import report
from apt_dense.benchmark.__main__ import cases_of, parse_args

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location('benchmark_docs', ROOT / 'tools/analysis_tools/benchmark_docs.py')
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)
PAGE = (ROOT / 'docs/benchmarks.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('name', tool.RUNS)
def test_the_page_is_up_to_date(name):
    """Nobody has edited a table by hand, and every command is one that the benchmark takes."""
    run = tool.RUNS[name]
    assert tool.rewrite(PAGE, name, tool.section(name, run, ROOT / 'docs/benchmarks')) == PAGE
    if run.module == 'apt_dense.benchmark':
        assert cases_of(parse_args([*run.photos, *run.arguments.split(), '--json', 'x.json']))
    assert all(hasattr(report, f'{table}_table') for table in run.tables)


@pytest.mark.parametrize('name', [name for name, run in tool.RUNS.items() if run.module == 'apt_dense.benchmark'
                                  and (ROOT / f'docs/benchmarks/{name}.json').is_file()])
def test_the_figures_are_of_the_command(name):
    """The rows of the file are those that its command asks for, so a changed suite must be measured again."""
    content = json.loads((ROOT / f'docs/benchmarks/{name}.json').read_text())
    run = tool.RUNS[name]
    args = parse_args([*run.photos, *run.arguments.split()])
    wanted = [(case.title, case.mode, case.batch, case.with_cp) for _, case in cases_of(args)]
    found = [(row['title'], row['case']['mode'], row['batch'], row['case']['with_cp']) for row in content['rows']]
    assert found == ([row for row in wanted if row in found] if run.on_gpu else wanted), 'only a GPU may be too small'
    assert run.arguments in content['environment']['command']


def test_rewrite():
    page = 'a\n<!-- x -->\nold\n<!-- end of x -->\nb\n<!-- y -->\n<!-- end of y -->\n'
    assert tool.rewrite(page, 'x', r'new \1') == page.replace('old\n', '\nnew \\1\n\n')
    with pytest.raises(ValueError, match='has no <!-- z -->'):
        tool.rewrite(page, 'z', '')


def test_a_run_without_figures_says_so(tmp_path):
    text = tool.section('gpu', tool.RUNS['gpu'], tmp_path)
    assert text.startswith('Not measured.') and 'python -m apt_dense.benchmark --suite gpu' in text
