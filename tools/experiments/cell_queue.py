"""Cells one after the other, each in a process of its own."""
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cell_config import num_iterations
from cell_costs import nominal_seconds, speed_factor
from cell_identity import cell_hash, code_hash
from cell_results import Results
from cells import Cell
from grids import DATASETS
from run_cell import RESULT, WEIGHTS, Job

from apt_dense.core.files import HELD, try_lock
from apt_dense.mm.fault_tolerance.signals import EXIT_STOPPED

ROOT = Path(__file__).parents[2]
MAX_KILLS = 3  # of a cell's process, after which the cell has failed
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None
SHOWN = ('bbox_mAP', 'segm_mAP', 'mIoU', 'boundary_IoU')


@dataclass(frozen=True)
class Places:
    """Folders, absolute: the cells' work directories, the datasets, and the configs det.py and seg.py."""
    work: Path
    data: Path
    configs: Path

    def work_dir(self, cell: Cell, identity: str) -> Path:
        """Of a cell with this hash."""
        return self.work / f'{cell.name}-{identity[:8]}'


class Stopped(Exception):
    """This program was told to stop."""


class Queue:
    """Runs the cells that have no result.

    Args:
        cells: in the order in which they run, each after the one that it starts from.
        results: where results are kept.
        places: where everything is.
        retry_failed: run cells again whose last run has failed.
        keep_stale: let results of other code or another config count.
        timing_rounds: see ``run_cell.Job``.
    """

    def __init__(self, cells: list[Cell], results: Results, places: Places, *, retry_failed: bool = False,
                 keep_stale: bool = False, timing_rounds: tuple[int, int] = (8, 2)):
        self.cells, self.results, self.places = cells, results, places
        self.retry_failed, self.keep_stale, self.timing_rounds = retry_failed, keep_stale, timing_rounds
        self.code = code_hash()
        self._parents = {cell.parent for cell in cells if cell.parent and self._state(cell) in ('open', 'stale')}

    def _hash(self, cell: Cell) -> str:
        return cell_hash(cell, self.places.configs, self.code)

    def _state(self, cell: Cell) -> str:
        """'done', 'failed', 'stale' (its result is of other code or another config), or 'open'."""
        result = self.results.get(cell)
        if result is None:
            return 'open'
        if result['hash'] != self._hash(cell) and not self.keep_stale:
            return 'stale'
        if result['status'] == 'failed':
            return 'open' if self.retry_failed else 'failed'
        return 'done'

    def _has_failed(self, cell: Cell) -> bool:
        result = self.results.get(cell)
        return result is not None and result['status'] == 'failed'

    def _is_waiting(self, cell: Cell) -> bool:
        """True if the cell must run: it has no result, or its weights are not here and others start from them."""
        state = self._state(cell)
        return state in ('open', 'stale') or state == 'done' and cell in self._parents and self._weights(cell) is None

    def _weights(self, cell: Cell) -> Path | None:
        """The weights of a cell that is done, if they are on this machine."""
        path = self.places.work_dir(cell, self.results.get(cell)['hash']) / WEIGHTS
        return path if path.is_file() else None

    def _nominal(self, cell: Cell) -> float:
        return nominal_seconds(cell, num_iterations(cell, self.places.configs))

    def _hours_left(self, waiting: list[Cell]) -> float:
        finished = [(self._nominal(cell), self.results.get(cell)) for cell in self.cells if self.results.get(cell)]
        return sum(map(self._nominal, waiting)) * speed_factor(finished) / 3600

    def show(self) -> int:
        """Print each cell with its state, and how long the rest takes; returns 0."""
        for cell in self.cells:
            print(f'{self._state(cell):6} {self._nominal(cell) / 60:6.1f} min  {cell.name}')
        waiting = [cell for cell in self.cells if self._is_waiting(cell)]
        hours = self._hours_left(waiting)
        print(f'{len(self.cells)} cells, {len(waiting)} to run: about {hours:.1f} hours of one core')
        return 0

    def run(self) -> int:
        """Run what has no result; returns an exit status, see run.py.

        Raises:
            ValueError: if another run is at work in these places, or the code changes meanwhile.
        """
        with _only_one(self.places.work), _stoppable():
            try:
                for position, cell in enumerate(self.cells, start=1):
                    self._handle(cell, f'[{position}/{len(self.cells)}]', self.cells[position:])
            except Stopped:
                print('stopped; the same command goes on from here', flush=True)
                return EXIT_STOPPED
        failed = [cell.name for cell in self.cells if self._has_failed(cell)]
        done = sum(self._state(cell) == 'done' for cell in self.cells)
        print(f'{done} of {len(self.cells)} cells are done', flush=True)
        for name in failed:
            print(f'failed: {name}', flush=True)
        return 1 if failed else 0

    def _handle(self, cell: Cell, counter: str, later: list[Cell]) -> None:
        """Run a cell if it must run, and print a line about it."""
        if not self._is_waiting(cell):
            print(f'{counter} {cell.name}: {describe(self.results.get(cell))} (cached)', flush=True)
            return
        if cell.parent and self._has_failed(cell.parent):
            print(f'{counter} {cell.name}: left out, {cell.parent.name} has failed', flush=True)
            return
        self._check_code()
        print(f'{counter} {cell.name}: started {time.strftime("%H:%M")}', flush=True)
        result = self._run_cell(cell)
        self.results.put(result)
        hours = self._hours_left([one for one in later if self._is_waiting(one)])
        print(f'{counter} {cell.name}: {describe(result)}; {result["seconds"]["wall"]:.0f} s; about {hours:.1f} h left',
              flush=True)

    def _check_code(self) -> None:
        if code_hash() != self.code:
            raise ValueError('the code has changed since the start, so further results would not belong with the '
                             'earlier ones: start again, with --keep-stale to keep those; or run the experiments in a '
                             'checkout of their own (git worktree)')

    def _run_cell(self, cell: Cell) -> dict[str, Any]:
        """The cell's result; of a process that dies again and again, that it has failed."""
        identity, parent = self._hash(cell), cell.parent
        work_dir = self.places.work_dir(cell, identity)
        for other in self.places.work.glob(f'{cell.name}-????????'):
            if other != work_dir:
                shutil.rmtree(other)
        job = Job(cell, DATASETS[cell.dataset], identity, self.code, parent and self.results.get(parent)['hash'],
                  self.places.configs, make_dataset(cell.dataset, self.places.data), work_dir,
                  parent and self._weights(parent), self.places.work / 'thresholds.json', self.timing_rounds)
        job.write(work_dir / 'job.json')
        finished = _read_result(work_dir)  # of a run that could not be recorded
        if finished is not None and finished['status'] == 'done' and (cell not in self._parents or
                                                                       (work_dir / WEIGHTS).is_file()):
            return finished
        (work_dir / RESULT).unlink(missing_ok=True)
        start = time.perf_counter()
        for _ in range(MAX_KILLS):
            status = _run_process(work_dir)
            finished = _read_result(work_dir)
            if finished is not None:
                return finished
            if 0 < status != EXIT_STOPPED:
                break
            print(f'    its process was ended by signal {-status}' if status < 0 else '    its process was stopped',
                  '- it goes on from its checkpoint', flush=True)
        error = f'exit status {status}, {_last_line(work_dir / "log.txt")}'
        return dict(cell=cell.to_json(), hash=identity, code=self.code, parent=job.parent, status='failed', error=error,
                    seconds=dict(wall=time.perf_counter() - start))


def describe(result: dict[str, Any]) -> str:
    """A result in a line."""
    if result['status'] == 'failed':
        return f'failed, {result["error"]}'
    figures = [f'{name} {result["metrics"][name]:.2f}' for name in SHOWN if result['metrics'].get(name) is not None]
    return ', '.join([*figures, f'kept {result["kept"]["content"]:.3f}'])


@cache
def make_dataset(name: str, data: Path) -> Path:
    """The folder of a dataset, which is made if it is not there.

    Raises:
        ValueError: if it cannot be made, or the folder holds another one.
    """
    dataset, out = asdict(DATASETS[name]), data / name
    dataset.pop('enlarged')
    options = [f'--{key.replace("_", "-")}={value}' for key, value in dataset.items()]
    done = subprocess.run([sys.executable, ROOT / 'tools/demo/make_demo_dataset.py', '--out', out, *options],
                          capture_output=True, text=True, env=_environment())
    if done.returncode:
        raise ValueError(f'dataset {name}: {done.stderr.strip()}')
    return out


def _run_process(work_dir: Path) -> int:
    """Run a cell's job; return its exit status, below 0 if a signal has ended it."""
    with open(work_dir / 'log.txt', 'ab') as log:
        process = subprocess.Popen([sys.executable, ROOT / 'tools/experiments/run_cell.py', work_dir / 'job.json'],
                                   cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=_environment(),
                                   preexec_fn=_die_with_parent)
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _die_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent ends, however it ends: a training then saves and stops.
    """
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _environment() -> dict[str, str]:
    """This environment, with this checkout first and one thread."""
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(paths), 'OMP_NUM_THREADS': '1'}


def _read_result(work_dir: Path) -> dict[str, Any] | None:
    path = work_dir / RESULT
    return json.loads(path.read_text()) if path.is_file() else None


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors='replace').splitlines() if line.strip()]
    return lines[-1] if lines else 'nothing printed'


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold a lock; ValueError if another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / '.lock', 'w') as file:
        error = try_lock(file)
        if error is not None and error.errno in HELD:
            raise ValueError(f'another run is at work in {folder}: wait for it, stop it, or give another --work-dir')
        yield


@contextmanager
def _stoppable() -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into ``Stopped`` while the context is open."""
    def stop(*_: object) -> None:
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
