#!/usr/bin/env python
"""Break a training in every way at hand, resume it, and print what was tried, what happened and what was lost.

    python tools/fault_drill/fault_drill.py                     # 20 kills and all other cases, some minutes
    python tools/fault_drill/fault_drill.py --cases kill --kills 3 --seed 1

A small detector on scenes that are made for it is trained by tools/train.py in processes of their own, with two data
loader workers.  Its uninterrupted run is the reference: what a broken and resumed run has at the end must equal it bit
for bit, in weights, averaged weights, optimiser, schedules and log.  The status is 1 if anything was lost, or
if an exit status or a message was not the one that the case must have.

The cases are in fault_cases.py, the trainings in fault_runs.py.
"""
import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fault_cases import CASES
from fault_runs import Drill, Outcome

from apt_dense.command_line import at_least


def run_cases(drill: Drill, names: list[str]) -> list[Outcome]:
    """Each case's row."""
    outcomes = []
    for name in names:
        start = time.perf_counter()
        try:
            outcomes.append(CASES[name](drill))
        except (OSError, subprocess.SubprocessError) as error:  # mounting is not allowed, say
            outcomes.append(Outcome(name, f'{type(error).__name__}: {error}', 'unknown'))
        print(f'[drill] {name}: lost {outcomes[-1].lost} ({time.perf_counter() - start:.0f} s)', flush=True)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cases', nargs='+', choices=CASES, default=list(CASES), metavar='CASE',
                        help=f'which to try: {", ".join(CASES)} (all)')
    parser.add_argument('--kills', type=at_least(1), default=20, help='number of kills (default: %(default)s)')
    parser.add_argument('--seed', type=at_least(0), default=0, help='of the random moments (default: %(default)s)')
    parser.add_argument('--keep', type=Path, help='a new folder to work in and keep; by default one that is removed')
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp(prefix='fault_drill_'))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        outcomes = run_cases(Drill(folder.resolve(), args.kills, args.seed), args.cases)
    finally:
        if not args.keep:
            shutil.rmtree(folder)
    print('\n| tried | happened | lost |\n|---|---|---|')
    for outcome in outcomes:
        print('| ' + ' | '.join(outcome) + ' |')
    return int(any(outcome.lost != 'nothing' for outcome in outcomes))


if __name__ == '__main__':
    sys.exit(main())
