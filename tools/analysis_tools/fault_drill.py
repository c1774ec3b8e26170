#!/usr/bin/env python
"""Break a training in every way at hand, resume it, and print what was tried, what happened and what was lost.

    python tools/analysis_tools/fault_drill.py                     # 20 kills and all other cases, some minutes
    python tools/analysis_tools/fault_drill.py --cases kill --kills 3 --seed 1

A small detector on scenes that are made for it is trained by tools/train.py in processes of their own, with two data
loader workers.  Its uninterrupted run is the reference: what a broken and resumed run has at the end must equal it bit
for bit, in weights, averaged weights, optimiser, schedules and log.  The status is 1 if anything was lost.

A case is a function in CASES that takes the Drill and returns an Outcome.
"""
import argparse
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from apt_dense.mm.run_comparison import differing, load, logged

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/apt_eva02_ti_demo_det.py'
INTERVAL = 4  # iterations from checkpoint to checkpoint
CHECKPOINT_MB = 40  # about the size of one
# A model of few channels on images of 128 px.
OPTIONS = [
    'model.data_preprocessor.pad_size_divisor=128', 'model.backbone.img_size=128', 'model.backbone.embed_dims=32',
    'model.backbone.depth=4', 'model.backbone.num_heads=2', 'model.backbone.window_size=4',
    'model.backbone.global_block_indexes=[1,3]', 'model.backbone.pretrain_img_size=64', 'model.backbone.num_scales=3',
    'model.backbone.thresholds=[3,3]', 'model.neck.in_channels=32',
    'train_dataloader.dataset.pipeline.3.scale=(128,128)', 'train_dataloader.dataset.pipeline.4.crop_size=(128,128)',
    'val_dataloader.dataset.pipeline.1.scale=(128,128)', 'train_dataloader.batch_size=2',
    'train_dataloader.num_workers=2', 'default_hooks.logger.interval=1', 'log_processor.window_size=5',
    f'default_hooks.checkpoint.interval={INTERVAL}', 'default_hooks.checkpoint.max_keep_ckpts=2',
]


class Outcome(NamedTuple):
    """A row of the table; ``lost`` is 'nothing' if all is well."""
    tried: str
    happened: str
    lost: str


class Drill:
    """Starts trainings in a folder and compares them with the uninterrupted one.

    Args:
        folder: where all is written.
        kills: number of kills of the case 'kill'.
        seed: of the random moments.
    """

    def __init__(self, folder: Path, kills: int, seed: int):
        self.folder, self.kills, self.random = folder, kills, random.Random(seed)
        self._references: dict[int, Path] = {}
        self.config = folder / 'drill.py'
        self.config.write_text(f"_base_ = '{CONFIG}'\n"
                               "custom_hooks = [dict(type='KeptTokensHook'), dict(type='EMAHook')]\n")
        subprocess.run([sys.executable, ROOT / 'tools/dataset_converters/make_demo_dataset.py', '--out',
                        folder / 'data', '--num-train', '24', '--num-val', '2'], check=True, stdout=subprocess.DEVNULL)

    def start(self, work: Path, iterations: int, **popen: Any) -> subprocess.Popen:
        """Start or resume a training with its output appended to WORK.log."""
        data = self.folder / 'data'
        options = [
            *OPTIONS, f'train_cfg.max_iters={iterations}', f'train_cfg.val_interval={3 * INTERVAL}',
            *(f'{split}_dataloader.dataset.data_root={data}/' for split in ('train', 'val', 'test')),
            *(f'{split}_evaluator.ann_file={data}/annotations/instances_val.json' for split in ('val', 'test'))]
        environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', PYTHONDONTWRITEBYTECODE='1')
        with open(log_of(work), 'a') as log:
            return subprocess.Popen(
                [sys.executable, ROOT / 'tools/train.py', self.config, '--work-dir', work, '--resume', '--cfg-options',
                 *options], stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self.folder, **popen)

    def run(self, work: Path, iterations: int, **popen: Any) -> int:
        """The exit status of a training, run to its end."""
        return self.start(work, iterations, **popen).wait()

    def reference(self, iterations: int) -> Path:
        """The work directory of the uninterrupted run."""
        if iterations not in self._references:
            work = self.folder / f'reference_{iterations}'
            if self.run(work, iterations):
                sys.exit(f'the uninterrupted run failed:\n{tail(work, 2000)}')
            self._references[iterations] = work
        return self._references[iterations]

    def lost(self, work: Path, iterations: int) -> str:
        """'nothing', or what a resumed run has not, or has otherwise than the uninterrupted one."""
        name = f'iter_{iterations}.pth'
        if not (work / name).is_file():
            return f'{name}, the end: {tail(work)}'
        expected = self.reference(iterations)
        found = sorted(differing(load(expected / name), load(work / name)))
        if found:
            return f'{len(found)} entries differ: {", ".join(found[:3])}'
        try:
            return 'nothing' if logged(expected) == logged(work) else 'the logs differ'
        except ValueError as error:
            return str(error)

    def prepare(self, name: str, iterations: int) -> Path:
        """A work directory of a run that ended, its log and name as if it had trained there."""
        work = self.folder / name
        shutil.copytree(self.reference(iterations), work)
        (work / 'last_checkpoint').write_text(str(work / f'iter_{iterations}.pth'))
        return work


def log_of(work: Path) -> Path:
    return work.with_name(f'{work.name}.log')


def tail(work: Path, length: int = 300) -> str:
    return log_of(work).read_text()[-length:].strip()


def message(work: Path) -> str:
    """The tool's last message to the user, without folders."""
    lines = [line for line in log_of(work).read_text().splitlines() if line.startswith(('error: ', 'stopped by'))]
    if not lines or 'Traceback' in tail(work, 3000).split(lines[-1])[-1]:
        return f'no clear message: {tail(work)}'
    return re.sub(r'/\S+/', '', lines[-1])


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait until the condition holds or the process ends."""
    while process.poll() is None and not condition():
        time.sleep(0.0005)


def kill(drill: Drill) -> Outcome:
    """SIGKILL, every other time within the write of a checkpoint, otherwise anywhere from the start on."""
    work, iterations, killed = drill.folder / 'killed', max(6, 4 * drill.kills), 0
    drill.reference(iterations)
    while killed < drill.kills:
        process = drill.start(work, iterations)
        before = len(log_of(work).read_text())
        if killed % 2:
            skip = drill.random.randint(0, 1)
            wait_for(lambda: log_of(work).read_text()[before:].count('Saving checkpoint') > skip, process)  # noqa: B023
            wait_for(lambda: any(work.glob('*.partial')), process)
        else:
            if drill.random.random() < 0.8:  # else while it starts
                wait_for(lambda: 'Iter(train)' in log_of(work).read_text()[before:], process)  # noqa: B023
            time.sleep(drill.random.uniform(0, 4))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            break  # it was at the end
        killed += 1
    status = drill.run(work, iterations)
    in_write = log_of(work).read_text().count('did not finish, is removed')  # a kill while starting leaves an old one
    return Outcome(f'{killed} x SIGKILL in a run of {iterations} iterations, then --resume',
                   f'{in_write} kills hit the write of a checkpoint; {iterations} iterations trained, status {status}',
                   drill.lost(work, iterations))


def truncated_checkpoint(drill: Drill) -> Outcome:
    """The last checkpoint has lost its second half."""
    return _damaged(drill, 'truncated', lambda path: os.truncate(path, path.stat().st_size // 2))


def flipped_bit(drill: Drill) -> Outcome:
    """The last checkpoint has one wrong bit in its middle."""
    def flip(path: Path) -> None:
        with open(path, 'r+b') as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))

    return _damaged(drill, 'flipped_bit', flip)


def _damaged(drill: Drill, name: str, damage: Callable[[Path], None]) -> Outcome:
    work = drill.prepare(name, 2 * INTERVAL)
    last = work / f'iter_{2 * INTERVAL}.pth'
    damage(last)
    status = drill.run(work, 3 * INTERVAL)
    passed = [line for line in log_of(work).read_text().splitlines() if 'is passed over' in line]
    resumed = f'resumed epoch: 0, iter: {INTERVAL}' in log_of(work).read_text()
    happened = re.sub(r'/\S+/', '', passed[0]) if passed else f'it was taken: {tail(work)}'
    return Outcome(f'{last.name} {name.replace("_", " ")}, --resume', f'{happened}; resumed from iteration {INTERVAL}: '
                   f'{"yes" if resumed else "no"}, status {status}', drill.lost(work, 3 * INTERVAL))


class _Code:
    """Pickled as a call: an unsafe load makes the file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


def code_in_checkpoint(drill: Drill) -> Outcome:
    """The last checkpoint holds a pickle that runs code."""
    work, marker = drill.prepare('code', 2 * INTERVAL), drill.folder / 'code_has_run'
    last = work / f'iter_{2 * INTERVAL}.pth'
    shutil.copy(last, drill.folder / 'good.pth')
    torch.save(dict(load(last), extra=_Code(marker)), last)
    refused = drill.run(work, 3 * INTERVAL)
    happened = f'{message(work)[:120]}...; status {refused}; the code ran: {"yes" if marker.exists() else "no"}'
    shutil.copy(drill.folder / 'good.pth', last)
    drill.run(work, 3 * INTERVAL)
    return Outcome(f'{last.name} with code in it, --resume', happened,
                   'control of the process' if marker.exists() else drill.lost(work, 3 * INTERVAL))


def full_disk(drill: Drill) -> Outcome:
    """No room for the third checkpoint: a small tmpfs where mounting is allowed, else a limit of the file size."""
    disk = drill.folder / 'disk'
    disk.mkdir()
    size = f'size={int(2.6 * CHECKPOINT_MB)}m'
    mount = ['mount', '-t', 'tmpfs', '-o', size, 'tmpfs', disk]
    mounted = subprocess.run(mount, stderr=subprocess.DEVNULL).returncode == 0
    try:
        if mounted:
            tried, work = f'tmpfs, {size}', disk / 'work'
            status = drill.run(work, 3 * INTERVAL)
        else:
            tried, work = 'RLIMIT_FSIZE of 8 MB', drill.prepare('full', 2 * INTERVAL)
            status = drill.run(work, 3 * INTERVAL, preexec_fn=lambda: resource.setrlimit(
                resource.RLIMIT_FSIZE, (8_000_000, 8_000_000)))
        left = sorted(path.name for path in work.glob('iter_*'))
        happened = f'{message(work)}; status {status}; there: {", ".join(left)}'
        if mounted:  # room is made
            subprocess.run(['mount', '-o', f'remount,size={8 * CHECKPOINT_MB}m', disk], check=True)
        drill.run(work, 3 * INTERVAL)
        lost = drill.lost(work, 3 * INTERVAL)
    finally:
        if mounted:
            subprocess.run(['umount', disk], check=True)
    return Outcome(f'{tried}: no room for a checkpoint; room made, --resume', happened, lost)


def unwritable_directory(drill: Drill) -> Outcome:
    """The work directory gives no permission; for root, who may write anywhere, it is mounted read-only."""
    work = drill.prepare('unwritable', 2 * INTERVAL)
    (work / '.train.lock').unlink()
    before, root = sorted(os.listdir(work)), os.getuid() == 0
    if root:
        subprocess.run(['mount', '--bind', work, work], check=True)
        subprocess.run(['mount', '-o', 'remount,bind,ro', work], check=True)
    else:
        work.chmod(0o555)
    status = drill.run(work, 3 * INTERVAL)
    happened = f'{message(work)}; status {status}'
    if root:
        subprocess.run(['umount', work], check=True)
    else:
        work.chmod(0o755)
    same = sorted(os.listdir(work)) == before
    drill.run(work, 3 * INTERVAL)
    return Outcome(f'work directory {"mounted read-only" if root else "without permission"}; made writable, --resume',
                   happened, drill.lost(work, 3 * INTERVAL) if same else 'files of the directory')


def two_runs(drill: Drill) -> Outcome:
    """A second run is started in a work directory in use."""
    work = drill.folder / 'shared'
    first = drill.start(work, 3 * INTERVAL)
    wait_for(lambda: 'Iter(train)' in log_of(work).read_text(), first)
    second = drill.run(work, 3 * INTERVAL)
    happened = f'the second: {message(work)}; status {second}; the first: status {first.wait()}'
    return Outcome('two runs in one work directory', happened, drill.lost(work, 3 * INTERVAL))


def signal_to_all(drill: Drill) -> Outcome:
    """What a scheduler sends before it takes the machine: SIGTERM to the training and its workers."""
    work = drill.folder / 'signalled'
    process = drill.start(work, 3 * INTERVAL, start_new_session=True)
    wait_for(lambda: 'Iter(train) [ 5' in log_of(work).read_text(), process)
    os.killpg(process.pid, signal.SIGTERM)
    status = process.wait()
    happened = f'{message(work)}; status {status}'
    drill.run(work, 3 * INTERVAL)
    return Outcome('SIGTERM to the training and its workers, then --resume', happened, drill.lost(work, 3 * INTERVAL))


CASES: dict[str, Callable[[Drill], Outcome]] = {
    function.__name__: function for function in (
        kill, signal_to_all, truncated_checkpoint, flipped_bit, code_in_checkpoint, full_disk, unwritable_directory,
        two_runs)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cases', nargs='+', choices=CASES, default=list(CASES), metavar='CASE',
                        help=f'which to try: {", ".join(CASES)} (all)')
    parser.add_argument('--kills', type=int, default=20, help='number of kills (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the random moments (default: %(default)s)')
    parser.add_argument('--keep', type=Path, help='a new folder to work in and keep; by default one that is removed')
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp(prefix='fault_drill_'))
    folder.mkdir(parents=True, exist_ok=True)
    drill, outcomes = Drill(folder.resolve(), args.kills, args.seed), []
    for name in args.cases:
        start = time.perf_counter()
        try:
            outcomes.append(CASES[name](drill))
        except (OSError, subprocess.SubprocessError) as error:  # mounting is not allowed, say
            outcomes.append(Outcome(name, f'{type(error).__name__}: {error}', 'unknown'))
        print(f'[drill] {name}: lost {outcomes[-1].lost} ({time.perf_counter() - start:.0f} s)', flush=True)
    print('\n| tried | happened | lost |\n|---|---|---|')
    for outcome in outcomes:
        print('| ' + ' | '.join(outcome) + ' |')
    if not args.keep:
        shutil.rmtree(folder)
    return int(any(outcome.lost != 'nothing' for outcome in outcomes))


if __name__ == '__main__':
    sys.exit(main())
