#!/usr/bin/env python
"""Run a grid of experiments, one cell after the other; cells that are done are not run again.

    python tools/experiments/run.py all --list     # what would run, and how long
    nohup nice python tools/experiments/run.py all > work_dirs/experiments.log 2>&1 &

A cell is done if docs/results/cells.jsonl holds a result of the same config, code, dataset and starting weights.  This
program may be killed at any time and started again: the cell that was running goes on from its checkpoint.  A cell that
fails is recorded with its error, and the next one runs.  The grids are in grids.py; report.py makes tables.
"""
import argparse
import sys
from pathlib import Path

from cell_queue import Places, Queue
from cell_results import Results
from cells import with_needed
from grids import GRIDS

from apt_dense.command_line import at_least

ROOT = Path(__file__).parents[2]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('grids', nargs='+', choices=GRIDS, metavar='NAME', help=f'one or more of {", ".join(GRIDS)}')
    parser.add_argument('--list', action='store_true', help='only say what would run')
    parser.add_argument('--only', metavar='TEXT', help='cells with this in their name, and what they start from')
    parser.add_argument('--retry-failed', action='store_true', help='run cells again that have failed')
    parser.add_argument('--keep-stale', action='store_true',
                        help='count results of other code or another config as done; the tables mark them')
    parser.add_argument('--timing-rounds', type=at_least(1), nargs=2, default=(8, 2), metavar=('IMAGES', 'STEPS'),
                        help='images and training steps that are timed (8 2)')
    places = parser.add_argument_group('places')
    places.add_argument('--results', type=Path, default=ROOT / 'docs/results/cells.jsonl')
    places.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/experiments', help='logs and weights')
    places.add_argument('--data', type=Path, default=ROOT / 'data/experiments', help='datasets, made where missing')
    places.add_argument('--configs', type=Path, default=ROOT / 'tools/experiments/configs', help='det.py and seg.py')
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0; 1 if cells have failed; 2 if nothing can be run; 75 if a signal has stopped it."""
    args = parse_args(arguments)
    planned = [cell for name in args.grids for cell in GRIDS[name]()]
    cells = [cell for cell in planned if not args.only or args.only in cell.name]
    if not cells:
        print(f'error: --only {args.only}: none of the {len(planned)} cells has this in its name, such as '
              f'{planned[0].name}', file=sys.stderr)
        return 2
    places = Places(args.work_dir.resolve(), args.data.resolve(), args.configs.resolve())
    try:
        queue = Queue(with_needed(cells), Results(args.results), places, retry_failed=args.retry_failed,
                      keep_stale=args.keep_stale, timing_rounds=tuple(args.timing_rounds))
        return queue.show() if args.list else queue.run()
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
