"""Check a config and its data: everything at once, in seconds, before a training.

Prints numbers for each split, everything that was found, and draws a few samples with their truth.  The exit status is
2 if anything must be put right first.  docs/data.md lists the checks.
"""
import argparse
import os
import sys
from pathlib import Path

from apt_dense.command_line import at_least
from apt_dense.core.files import check_folder
from apt_dense.mm.cli import launch
from apt_dense.mm.errors import LaunchError
from apt_dense.mm.preflight import draw, rules, run
from apt_dense.mm.preflight.datasets import SPLITS
from apt_dense.mm.preflight.findings import MENDED, STOP, WARN
from apt_dense.mm.preflight.options import OptionsAction

HEADINGS = {STOP: 'must be put right', WARN: 'worth a look', MENDED: 'put right when it is read'}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', help='config file')
    parser.add_argument('--rules', action='store_true', help='print the list of all checks for docs/data.md, and exit')
    parser.add_argument('--deep', choices=run.DEEP,
                        help='read the pixels of some pictures and label maps, or of all (without: headers only)')
    parser.add_argument('--out-dir', help='where the drawn samples go (work_dirs/NAME_OF_THE_CONFIG/check_data)')
    parser.add_argument('--num-pictures', type=at_least(0), default=3,
                        help='samples drawn for each dataset; 0 draws none')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE',
                        help='change settings of the config, as for tools/train.py')
    args = parser.parse_args()
    if not args.config and not args.rules:
        parser.error('which config?')
    return args


def main() -> None:
    args = parse_args()
    if args.rules:
        print(rules.table())
        return
    args.launcher, args.work_dir, args.local_rank = 'none', None, 0
    cfg = launch.load_config(args)
    if not any(cfg.get(key) for key in ('model', *(f'{split}_dataloader' for split in SPLITS))):
        raise LaunchError(f'{args.config} has neither a model nor a dataset: there is nothing to check')
    if args.out_dir and args.num_pictures > 0:
        check_folder(args.out_dir, '--out-dir')
    report = run.check(cfg, deep=args.deep)
    for line in report.counts:
        print(line)
    for severity, heading in HEADINGS.items():
        found = [finding for finding in report.findings if finding.rule.severity == severity]
        if found:
            print(f'\n{heading}: {len(found)}', *(f'  {finding}' for finding in found), sep='\n')
    if not report.findings:
        print('\nnothing was found')
    if args.num_pictures > 0:
        out_dir = args.out_dir or os.path.join('work_dirs', Path(args.config).stem, 'check_data')
        print()
        for line in draw.draw_samples(cfg, out_dir, args.num_pictures):
            print(line)
    if report.stops:
        sys.exit(2)


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
