"""What fault_drill.py tries: a case is a function in CASES that takes the Drill and returns an Outcome."""
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from fault_runs import INTERVAL, Drill, Outcome, deviations, log_of, message, plain, tail, verdict

from apt_dense.mm.fault_tolerance.run_comparison import load

BROKEN = '000007.jpg'  # of the training images

def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait until the condition holds or the process ends."""
    while process.poll() is None and not condition():
        time.sleep(0.0005)


def kill(drill: Drill) -> Outcome:
    """SIGKILL, every other time within the write of a checkpoint, otherwise anywhere from the start on."""
    work, iterations, killed = drill.folder / 'killed', max(6, 4 * drill.kills), 0
    drill.reference(iterations)
    while killed < drill.kills:
        with drill.started(work, iterations) as process:
            _wait_for_the_moment(drill, work, process, in_write=bool(killed % 2))
            process.send_signal(signal.SIGKILL)
            if process.wait() != -signal.SIGKILL:
                break  # it was at the end
        killed += 1
    status = drill.run(work, iterations)
    in_write = log_of(work).read_text().count('did not finish, is removed')  # a kill while starting leaves an old one
    return Outcome(f'{killed} x SIGKILL in a run of {iterations} iterations, then --resume',
                   f'{in_write} kills hit the write of a checkpoint; {iterations} iterations trained, status {status}',
                   verdict(drill.lost(work, iterations), *deviations(status, 0)))


def _wait_for_the_moment(drill: Drill, work: Path, process: subprocess.Popen, in_write: bool) -> None:
    before = len(log_of(work).read_text())
    if in_write:
        skip = drill.random.randint(0, 1)
        wait_for(lambda: log_of(work).read_text()[before:].count('Saving checkpoint') > skip, process)
        wait_for(lambda: any(work.glob('*.partial')), process)
        return
    if drill.random.random() < 0.8:  # else while it starts
        wait_for(lambda: 'Iter(train)' in log_of(work).read_text()[before:], process)
    time.sleep(drill.random.uniform(0, 4))


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
    passed = [plain(line) for line in log_of(work).read_text().splitlines() if 'is passed over' in line]
    resumed = f'resumed epoch: 0, iter: {INTERVAL}' in log_of(work).read_text()
    happened = passed[0] if passed else f'it was taken: {tail(work)}'
    unexpected = deviations(status, 0)
    if not (passed and resumed):
        unexpected.append(f'not resumed from iteration {INTERVAL} with a warning')
    return Outcome(f'{last.name} {name.replace("_", " ")}, --resume', f'{happened}; resumed from iteration {INTERVAL}: '
                   f'{"yes" if resumed else "no"}, status {status}',
                   verdict(drill.lost(work, 3 * INTERVAL), *unexpected))


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
    status = drill.run(work, 3 * INTERVAL)
    unexpected = deviations(status, 2, message(work), 'holds more than plain data and is not loaded')
    if marker.exists():
        unexpected.append('control of the process')
    happened = f'{message(work)[:120]}...; status {status}; the code ran: {"yes" if marker.exists() else "no"}'
    shutil.copy(drill.folder / 'good.pth', last)
    return Outcome(f'{last.name} with code in it, --resume', happened, drill.finish(work, 3 * INTERVAL, *unexpected))


def full_disk(drill: Drill) -> Outcome:
    """No room for the third checkpoint: a small tmpfs where mounting is allowed, else a limit of the file size."""
    size = (drill.reference(2 * INTERVAL) / f'iter_{2 * INTERVAL}.pth').stat().st_size
    disk = drill.folder / 'disk'
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={int(2.6 * size)}', 'tmpfs', disk]
    if subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        work, limit = drill.prepare('full', 2 * INTERVAL), (size // 2, size // 2)
        status = drill.run(work, 3 * INTERVAL, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
        return _full(drill, work, 'RLIMIT_FSIZE of half a checkpoint', status, 'File too large')
    try:
        status = drill.run(disk / 'work', 3 * INTERVAL)
        return _full(drill, disk / 'work', 'tmpfs for 2.6 checkpoints', status, 'No space left on device',
                     ['mount', '-o', f'remount,size={8 * size}', disk])
    finally:
        subprocess.run(['umount', disk], check=True)


def _full(drill: Drill, work: Path, tried: str, status: int, reason: str, make_room: list | None = None) -> Outcome:
    left = sorted(path.name for path in work.glob('iter_*'))
    happened = f'{message(work)}; status {status}; there: {", ".join(left)}'
    unexpected = deviations(status, 2, message(work), f'.pth cannot be written: {reason}')
    if make_room:
        subprocess.run(make_room, check=True)
    return Outcome(f'{tried}: no room for a checkpoint; room made, --resume', happened,
                   drill.finish(work, 3 * INTERVAL, *unexpected))


def unwritable_directory(drill: Drill) -> Outcome:
    """The work directory gives no permission; for root, who may write anywhere, it is mounted read-only."""
    work = drill.prepare('unwritable', 2 * INTERVAL)
    (work / '.train.lock').unlink()
    before, root = sorted(os.listdir(work)), os.getuid() == 0
    if root:
        subprocess.run(['mount', '--bind', work, work], check=True)
    try:
        if root:
            subprocess.run(['mount', '-o', 'remount,bind,ro', work], check=True)
        else:
            work.chmod(0o555)
        status = drill.run(work, 3 * INTERVAL)
    finally:
        if root:
            subprocess.run(['umount', work], check=True)
        else:
            work.chmod(0o755)
    unexpected = deviations(status, 2, message(work), 'work directory unwritable cannot be written: ')
    if sorted(os.listdir(work)) != before:
        unexpected.append('files of the directory')
    happened = f'{message(work)}; status {status}'
    return Outcome(f'work directory {"mounted read-only" if root else "without permission"}; made writable, --resume',
                   happened, drill.finish(work, 3 * INTERVAL, *unexpected))


def two_runs(drill: Drill) -> Outcome:
    """A second run is started in a work directory in use."""
    work = drill.folder / 'shared'
    with drill.started(work, 3 * INTERVAL) as first:
        wait_for(lambda: 'Iter(train)' in log_of(work).read_text(), first)
        second = drill.run(work, 3 * INTERVAL)
        said = message(work)
        status = first.wait()
    return Outcome('two runs in one work directory',
                   f'the second: {said}; status {second}; the first: status {status}',
                   verdict(drill.lost(work, 3 * INTERVAL), *deviations(status, 0),
                           *deviations(second, 2, said, 'work directory shared is in use by process ')))


def signal_to_all(drill: Drill) -> Outcome:
    """What a scheduler sends before it takes the machine: SIGTERM to the training and its workers."""
    work = drill.folder / 'signalled'
    with drill.started(work, 3 * INTERVAL, start_new_session=True) as process:
        wait_for(lambda: 'Iter(train) [ 5' in log_of(work).read_text(), process)
        os.killpg(process.pid, signal.SIGTERM)
        status = process.wait()
    happened = f'{message(work)}; status {status}'
    unexpected = deviations(status, 75, message(work), 'stopped by SIGTERM after iteration ')
    return Outcome('SIGTERM to the training and its workers, then --resume', happened,
                   drill.finish(work, 3 * INTERVAL, *unexpected))


def broken_image(drill: Drill) -> Outcome:
    """A truncated image stops the training, which goes on when it is repaired."""
    work, settings = drill.folder / 'broken_image', _with_broken_image(drill, 'broken_image')
    status = drill.run(work, 3 * INTERVAL, **settings)
    happened = f'{message(work)}; status {status}'
    unexpected = deviations(status, 2, message(work), BROKEN)
    shutil.copy(drill.data / 'train' / BROKEN, settings['data'] / 'train')
    return Outcome("an image truncated, on_bad='raise'; repaired, --resume", happened,
                   drill.finish(work, 3 * INTERVAL, *unexpected, **settings))


def skipped_image(drill: Drill) -> Outcome:
    """A truncated image is counted and left out; the end cannot equal that of the run which has it."""
    work, settings = drill.folder / 'skipped_image', _with_broken_image(drill, 'skipped_image')
    options = ['train_dataloader.dataset.pipeline.0.on_bad=skip']
    status = drill.run(work, 3 * INTERVAL, **settings, options=options)
    lines = [line for line in log_of(work).read_text().splitlines() if 'skipped so far: ' in line]
    counted = lines[-1].partition('skipped so far: ')[2] if lines else 'none'
    named = [line for line in log_of(work).read_text().splitlines() if 'bad sample skipped' in line and BROKEN in line]
    unexpected = deviations(status, 0)
    if not (work / f'iter_{3 * INTERVAL}.pth').is_file():
        unexpected.append('the last checkpoint')
    if not named or not lines or counted.startswith('0 '):
        unexpected.append('the image is not named and counted')
    happened = f'skipped: {counted}; {3 * INTERVAL} iterations trained, status {status}'
    return Outcome("an image truncated, on_bad='skip'", happened, verdict('nothing', *unexpected))


def _with_broken_image(drill: Drill, name: str) -> dict:
    """Settings of trainings on a copy of the data with half of one image."""
    data = drill.folder / f'data_{name}'
    shutil.copytree(drill.data, data)
    path = data / 'train' / BROKEN
    os.truncate(path, path.stat().st_size // 2)
    return dict(config=drill.guarded, data=data)


CASES: dict[str, Callable[[Drill], Outcome]] = {
    function.__name__: function for function in (
        kill, signal_to_all, truncated_checkpoint, flipped_bit, code_in_checkpoint, full_disk, unwritable_directory,
        two_runs, broken_image, skipped_image)}
