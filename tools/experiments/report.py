#!/usr/bin/env python
"""Write the tables and plots of docs/results.md from the results that run.py has kept; it runs nothing.

    python tools/experiments/report.py

The part of the page between <!-- NAME --> and <!-- end of NAME --> is made here; every run is listed in
docs/results/runs.md.
"""
import argparse
import json
import sys
from pathlib import Path

from cell_identity import cell_hash, code_hash
from cell_results import Results
from cells import Cell, with_needed
from grids import DATASETS, GRIDS
from report_plots import write_plots
from report_tables import Figures, cells_table, curves_table, feature_loss_table, runs_table, state

from apt_dense.benchmark.report import rewrite
from apt_dense.core.files import write_atomically

ROOT = Path(__file__).parents[2]
RUNS_PAGE = """# Every run of the experiments

Written by `python tools/experiments/report.py`; [the results](../results.md) say what the names mean.

{table}
"""


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--results', type=Path, default=ROOT / 'docs/results/cells.jsonl')
    parser.add_argument('--page', type=Path, default=ROOT / 'docs/results.md')
    parser.add_argument('--configs', type=Path, default=ROOT / 'tools/experiments/configs')
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    results, code = Results(args.results), code_hash()
    figures, configs = Figures(results), args.configs.resolve()

    def is_stale(cell: Cell) -> bool:
        return cell.dataset not in DATASETS or results.get(cell)['hash'] != cell_hash(cell, configs, code)

    planned = with_needed(GRIDS['all']())
    plots = write_plots(GRIDS['methods'](), figures, args.page.parent / 'results')
    parts = {'state': state(planned, results, is_stale),
             'plots': '\n\n'.join(f'![{Path(name).stem}](results/{name})' for name in plots) or 'Nothing to plot.',
             'curves': curves_table([cell for cell in results.cells() if cell.training.start == 'random'], figures)}
    path = args.results.with_name('feature_loss.json')
    parts['feature_loss'] = feature_loss_table(json.loads(path.read_text()) if path.is_file() else {})
    parts |= {name: cells_table(make(), figures) for name, make in GRIDS.items() if name != 'all'}
    page = args.page.read_text(encoding='utf-8')
    for name, text in parts.items():
        page = rewrite(page, name, text)
    write_atomically(args.page, page)
    table = runs_table(results.cells(), results, is_stale)
    write_atomically(args.page.parent / 'results/runs.md', RUNS_PAGE.format(table=table))
    print(parts['state'])
    return 0


if __name__ == '__main__':
    sys.exit(main())
