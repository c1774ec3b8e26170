#!/usr/bin/env python
"""The first hour on a GPU: checks, tests and benchmarks, for one folder of figures.

    tools/benchmark/gpu_hour.sh --out work_dirs/gpu_hour
    tools/benchmark/gpu_hour.sh --out work_dirs/gpu_hour --only kept kept_train      # these again
    tools/benchmark/gpu_hour.sh --out /tmp/rehearsal --device cpu --quick            # the script itself, in small

Takes 25 minutes at most; what does not fit into them is left out.  A step that fails is recorded, and the next ones
run.  The folder gets report.md (goals, steps, tables), steps.json, and for each step NAME.json, NAME.png (where
matplotlib is) and logs/NAME.txt.  Needs torch; whole models and their tests need OpenMMLab, tests pytest.
"""
import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from check_gpu import describe as describe_setup
from gpu_steps import Step, steps

from apt_dense.benchmark import attention, report, summary
from apt_dense.command_line import between
from apt_dense.core.files import write_atomically

ROOT = Path(__file__).parents[2]
BAD = ('failed', 'stopped')
REHEARSAL = 'A rehearsal with small models and few rounds: its figures, and which goals they meet, mean nothing.\n'
Record = dict[str, Any]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='folder for all that is written')
    parser.add_argument('--minutes', type=between(0), default=25, help='for all steps together (25)')
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--quick', action='store_true', help='small models, few rounds: whether the script works')
    parser.add_argument('--only', nargs='+', metavar='STEP', help='these steps, in a folder that may hold others')
    args = parser.parse_args(arguments)
    known = [step.name for step in steps(args.device, args.quick)]
    unknown = sorted(set(args.only or ()) - set(known))
    if unknown:
        parser.error(f'--only {" ".join(unknown)}: the steps are {", ".join(known)}')
    if args.device == 'cpu' and not args.quick:
        parser.error('--device cpu would take days: add --quick, which runs all of it in small')
    if args.device != 'cpu' and not torch.cuda.is_available():
        parser.error(f'--device {args.device}, but torch {torch.__version__} finds no GPU: run it where one is, or '
                     'rehearse with --device cpu --quick')
    if not args.only and (args.out / 'steps.json').exists():
        parser.error(f'{args.out} holds a run already: choose another --out, or the steps to repeat with --only')
    return args


def run_step(step: Step, out: Path, seconds: float, environment: dict[str, str]) -> Record:
    """Run a step's commands, their output in logs/NAME.txt, until one fails or the time is over.

    Returns:
        'name'; 'state': 'done', 'left out', 'failed' or 'stopped' (time is over); 'why', in words; 'seconds';
        'commands'.
    """
    commands = step.command_lines(out)
    record: Record = dict(name=step.name, state='left out', why=step.obstacle() or '', seconds=0.0,
                          commands=[shlex.join(['python', *words[1:]]) for words in commands])
    if record['why']:
        return record
    if seconds <= 0:
        return record | dict(why='no time was left')
    begin, log = time.monotonic(), out / 'logs' / f'{step.name}.txt'
    for old in (out / f'{step.name}.json', out / f'{step.name}.json.part', out / f'{step.name}.png'):
        old.unlink(missing_ok=True)  # of a run before, which these figures must not be taken for
    with log.open('w') as file:
        for words in commands:
            file.write(f'$ {shlex.join(words)}\n')
            file.flush()
            code = _run(words, file, seconds - (time.monotonic() - begin), environment)
            if code != 0:
                break
    record['seconds'] = time.monotonic() - begin
    said = next((line for line in reversed(log.read_text(errors='replace').splitlines()) if line.strip()), '')
    if code is None:
        return record | dict(state='stopped', why=f'after {record["seconds"]:.0f} s')
    if code == 2 and said.startswith('error: '):
        return record | dict(why=said.removeprefix('error: '))  # it has refused: a kernel that is not there
    return record | dict(state='failed' if code else 'done', why=said if code or not step.kind else '')


def _run(words: list[str], log, seconds: float, environment: dict[str, str]) -> int | None:
    """The exit status of a command, or None if it was stopped, with all processes that it has begun."""
    with subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment,
                          start_new_session=True) as process:
        try:
            return process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def keep_part(path: Path) -> None:
    """Give the rows that a stopped or failed benchmark has written their name, and say that others are left out."""
    part = path.with_name(f'{path.name}.part')
    if not path.exists() and part.exists():
        content = json.loads(part.read_text())
        content['left_out'] = [*content.get('left_out', ()), 'the rows that follow']
        write_atomically(path, json.dumps(content, indent=1) + '\n')
    part.unlink(missing_ok=True)


def tables(step: Step, path: Path) -> str:
    """What the file of a step says."""
    content = json.loads(path.read_text())
    if step.kind == 'setup':
        return describe_setup(content)
    if step.kind == 'whole':
        return f'{content["setting"]}\n\n{report.whole_table(content["results"])}'
    if step.kind == 'attention':
        found = [attention.describe(content['rows']), attention.table(content['rows'])] if content['rows'] else []
        return '\n\n'.join([*found, *(f'Left out: {reason}' for reason in content['absent'])])
    if content['rows'] and find_spec('matplotlib') and not path.with_suffix('.png').exists():
        report.plot(path.with_suffix('.png'), content['rows'])
    picture = f'\n\n![{step.name}]({step.name}.png)' if path.with_suffix('.png').exists() else ''
    left_out = content.get('left_out', ())
    return report.report(content['rows']) + picture + (f'\n\nLeft out: {"; ".join(left_out)}.' if left_out else '')


def summarise(out: Path, records: list[Record]) -> str:
    """The goals and the steps."""
    lines = [[record['name'], record['state'], f'{record["seconds"]:.0f}', record['why'][:160]] for record in records]
    table = report.markdown(['step', 'state', 'seconds', 'why, or what it said last'], lines)
    return f'## Goals\n\n{summary.table(out, summary.GPU_GOALS)}\n\n## Steps\n\n{table}'


def write(out: Path, plan: list[Step], records: list[Record], quick: bool) -> None:
    """Write steps.json and report.md of what has run by now."""
    write_atomically(out / 'steps.json', json.dumps(records, indent=1) + '\n')
    parts = ['# The first hour on a GPU', *([REHEARSAL] if quick else []), summarise(out, records)]
    commands = {record['name']: '\n'.join(record['commands']) for record in records}
    for step in plan:
        path = out / f'{step.name}.json'
        if step.name in commands and step.kind and path.exists():
            parts.append(f'## {step.name}\n\n```bash\n{commands[step.name]}\n```\n\n{tables(step, path)}')
    write_atomically(out / 'report.md', '\n\n'.join(parts) + '\n')


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    out, end = args.out.resolve(), time.monotonic() + 60 * args.minutes
    (out / 'logs').mkdir(parents=True, exist_ok=True)
    environment = os.environ | dict(APT_TEST_DEVICE=args.device, PYTHONUNBUFFERED='1')
    plan, file = list(steps(args.device, args.quick)), out / 'steps.json'
    records = {record['name']: record for record in json.loads(file.read_text())} if file.exists() else {}
    for step in plan:
        if args.only and step.name not in args.only:
            continue
        print(f'[{step.name}] ', end='', flush=True)
        records[step.name] = record = run_step(step, out, min(60 * step.minutes, end - time.monotonic()), environment)
        keep_part(out / f'{step.name}.json')
        print(f'{record["state"]}, {record["seconds"]:.0f} s. {record["why"]}'.rstrip(), flush=True)
        ordered = [records[each.name] for each in plan if each.name in records]
        write(out, plan, ordered, args.quick)
    print(f'\n{summarise(out, ordered)}\n\n{REHEARSAL if args.quick else ""}All tables: {args.out / "report.md"}')
    bad = [record['name'] for record in ordered if record['state'] in BAD]
    if bad:
        print(f'error: {", ".join(bad)}: see {args.out / "logs"}', file=sys.stderr)
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
