"""tools/experiments/report.py: what is in the results is in the tables, and nothing else."""
from dataclasses import replace

import pytest

from tests.tools.experiments.conftest import modules

cells, grids, tables = modules.cells, modules.grids, modules.report_tables
PAGE = '\n'.join(f'<!-- {name} -->\nold\n<!-- end of {name} -->'
                 for name in ('state', 'plots', 'curves', 'feature_loss', *grids.GRIDS) if name != 'all')
PATCHES = grids.upsampling('det', 0.5)


def result(cell, value, kept=0.5, status='done', code='code', **more):
    """A result whose main metric is ``value``."""
    names = tables.METRICS[cell.task]
    content = dict(cell=cell.to_json(), hash='0', code=code, status=status, seconds=dict(wall=10.0, process=9.0),
                   commit='abc', resumed_at=0, **more)
    if status == 'failed':
        return dict(content, error='ValueError: a | b')
    times = {kind: dict(cell=1.0, dense=1.5, speedup=1.5, rounds=2) for kind in ('test', 'train')}
    return dict(content, metrics={**dict.fromkeys(names, None), tables.main_metric(cell.task): value},
                kept=dict(content=kept, all=kept), times=times if cell.patches else None, iterations=100,
                curve=[[20, 10.0], [40, value]] if cell.training == cells.SCRATCH else [])


@pytest.fixture
def results(tmp_path):
    return modules.cell_results.Results(tmp_path / 'results/cells.jsonl')


def write_page(tmp_path, results):
    page = tmp_path / 'results.md'
    page.write_text(PAGE)
    assert modules.report.main(['--results', str(results.path), '--page', str(page)]) == 0
    return page.read_text(), (tmp_path / 'results/runs.md').read_text()


def put_a_seed(results, seed, dense, extra, resizing, apt):
    short = cells.Cell('det', 'native', PATCHES, grids.ENTIRE_TENTH, seed)
    for cell, value in ((short.parent, dense), (short.control, extra), (short.resizing, resizing), (short, apt)):
        results.put(result(cell, value))
    return short


def test_without_results_the_page_says_so(tmp_path, results, capsys):
    page, runs = write_page(tmp_path, results)
    number = len(cells.with_needed(grids.everything()))
    assert f'None of the {number} runs has been made.' in page and 'Nothing to plot.' in page
    assert page.count(tables.NOTHING) == len(grids.GRIDS) + 1  # of all grids but one, the curves and the losses
    assert tables.NOTHING in runs and 'old' not in page
    assert not list((tmp_path / 'results').glob('*.png'))
    assert 'None of the' in capsys.readouterr().out


def test_recovery_against_a_dense_model_with_the_same_iterations(results):
    short = put_a_seed(results, 0, dense=50, extra=54, resizing=44, apt=52)
    figures = tables.Figures(results)
    assert figures.recovery(short) == pytest.approx((52 - 44) / (54 - 44))
    assert figures.recovery(short.resizing) == 0
    assert figures.loss(short) == pytest.approx(2) and figures.loss(short.resizing) == pytest.approx(6)
    assert figures.recovery(short.parent) is None
    harmless = put_a_seed(results, 1, dense=50, extra=50, resizing=49.8, apt=50)
    assert figures.recovery(harmless) is None  # nothing to recover


def test_mean_and_deviation_over_the_seeds(results):
    figures = tables.Figures(results)
    group = [put_a_seed(results, seed, dense=50, extra=54, resizing=44, apt=apt)
             for seed, apt in enumerate((50, 52, 54))]
    results.put(result(cells.Cell('det', 'native', PATCHES, grids.ENTIRE_TENTH, 7), None, status='failed'))
    row = next(line for line in tables.cells_table(group, figures).splitlines() if '52.0' in line)
    assert [column.strip() for column in row.split('|')[4:9]] == [
        '52.0 ± 2.0 (3)', '54.0 ± 0.0 (3)', '2.0 ± 2.0 (3)', '44.0 ± 0.0 (3)', '0.80 ± 0.20 (3)']
    assert '1.50 ± 0.00 (3)' in row
    put_a_seed(results, 3, dense=60, extra=60, resizing=50, apt=60)
    results.put(result(replace(group[0], seed=3), None, status='failed'))  # its Dense is not in the row
    more = tables.cells_table([*group, replace(group[0], seed=3)], figures)
    assert next(line for line in more.splitlines() if '52.0' in line) == row
    assert tables.spread([None, 3.0]) == '3.0' and tables.spread([None]) == '-'


def test_every_run_is_listed_also_the_failed_and_the_stale(tmp_path, results):
    short = put_a_seed(results, 0, dense=50, extra=54, resizing=44, apt=52)
    failed = cells.Cell('seg', 'native', None, cells.SCRATCH)
    results.put(result(failed, None, status='failed'))
    fresh = modules.cell_identity.cell_hash(short, modules.cell_queue.ROOT / 'tools/experiments/configs',
                                            modules.cell_identity.code_hash())
    results.put({**result(short, 52), 'hash': fresh})
    page, runs = write_page(tmp_path, results)
    assert '4 of ' in page and '1 have failed; 4 of the results are of earlier code' in page
    lines = {line.split(' | ')[0].strip('| '): line for line in runs.splitlines() if line.startswith('|')}
    assert r'failed: ValueError: a \| b' in lines[failed.name]
    assert 'box mAP 52.00' in lines[short.name] and 'other code' not in lines[short.name]
    assert 'box mAP 44.00 (other code or config)' in lines[short.resizing.name]
    assert '10.0 (20), 50.0 (40)' in page
    assert not list((tmp_path / 'results').glob('*.png'))  # of one share of kept tokens there is no curve
    other = replace(short, patches=replace(short.patches, kept=0.7))
    results.put(result(other, 53, kept=0.7))
    page, _ = write_page(tmp_path, results)
    assert {path.name for path in (tmp_path / 'results').glob('*.png')} == {
        'accuracy_kept.png', 'accuracy_time.png', 'recovery.png', 'untrained.png'}
    assert '](results/recovery.png)' in page


def test_the_plots_show_the_figures(results):
    for seed, apt in enumerate((50, 54)):
        short = put_a_seed(results, seed, dense=50, extra=54, resizing=44, apt=apt)
    chosen = [cell for cell in grids.methods() if cell.task == 'det' and cell.dataset == 'native']
    series = modules.report_plots._series(chosen, tables.Figures(results), 'kept')
    assert series['upsampling_error_max', short.training.name] == [(0.5, 52.0, pytest.approx(8**0.5))]
    assert series['upsampling_error_max', 'untrained'] == [(0.5, 44.0, 0.0)]
    times = modules.report_plots._series(chosen, tables.Figures(results), 'time')
    assert times['upsampling_error_max', 'untrained'][0][0] == pytest.approx(1 / 1.5)
