#!/usr/bin/env python
"""Train, test and time one cell of the experiments in this process; run.py starts it.

    python tools/experiments/run_cell.py JOB.json

JOB.json holds a cell and where things are, see ``Job``.  The result is written to the cell's work directory as
result.json: figures, or the error.  A run that was killed goes on from its last checkpoint; exit status 75 says that a
signal has stopped it.
"""
import datetime
import json
import platform
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from cell_config import build_config
from cell_thresholds import find_cell_thresholds
from cell_timing import time_against_dense
from cells import SCRATCH, Cell, Patches
from grids import WARM_KEPT, Dataset

from apt_dense.core.files import write_atomically
from apt_dense.extras import from_extra
from apt_dense.mm import compat
from apt_dense.mm.cli import launch, start
from apt_dense.mm.fault_tolerance import make_fault_tolerant, signals

with from_extra('mm'):
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from mmengine.runner import Runner

ROOT = Path(__file__).parents[2]
RESULT, WEIGHTS = 'result.json', 'weights.pth'
MAIN_METRICS = {'det': 'coco/bbox_mAP', 'seg': 'mIoU'}
KEPT = {'content': '_content', 'all': ''}
SCOPES = {'det': 'mmdet', 'seg': 'mmseg'}


@dataclass(frozen=True)
class Job:
    """What run.py hands over, as JSON.

    Attributes:
        cell: the cell.
        dataset: what its dataset is.
        hash, code, parent: its identity, that of the code, and that of the cell that it starts from, or None.
        configs, data_root: the configs' folder and the dataset's.
        work_dir: of the cell.
        weights: of the cell that it starts from, or None.
        thresholds: the cache of thresholds.
        timing_rounds: batches in testing and steps in training that are timed.
    """
    cell: Cell
    dataset: Dataset
    hash: str
    code: str
    parent: str | None
    configs: Path
    data_root: Path
    work_dir: Path
    weights: Path | None
    thresholds: Path
    timing_rounds: tuple[int, int]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        content = {**vars(self), 'cell': self.cell.to_json(), 'dataset': asdict(self.dataset)}
        write_atomically(path, json.dumps(content, indent=1, default=str) + '\n')

    @classmethod
    def read(cls, path: Path) -> 'Job':
        """The inverse of ``write``."""
        content = json.loads(path.read_text())
        for name in ('configs', 'data_root', 'work_dir', 'weights', 'thresholds'):
            content[name] = content[name] and Path(content[name])
        content['cell'] = Cell.from_json(content['cell'])
        content['dataset'] = Dataset(**content['dataset'])
        content['timing_rounds'] = tuple(content['timing_rounds'])
        return cls(**content)


def run_cell(job: Job) -> dict[str, Any]:
    """Train and test the cell.

    Returns:
        'metrics' (percent), 'kept' (tokens over cells of the validation images, 'content' and 'all'), 'thresholds',
        'max_tokens', 'iterations', 'curve' (iteration and main metric, of trainings from random weights), 'resumed_at',
        the iteration that a killed run went on from, and 'times'.
    """
    cell, choice = job.cell, None
    compat.filter_library_warnings()
    if cell.patches is not None:
        choice = _choose(job)
    cfg = _config(job, choice)
    cfg.work_dir, cfg.experiment_name, cfg.visualizer.name = str(job.work_dir), job.work_dir.name, job.work_dir.name
    if cell.training.share:
        runner, resumed_at = _train(cfg)
    else:
        runner, resumed_at = launch.build_runner(cfg), 0
    metrics = {name.rpartition('/')[2]: value for name, value in runner.test().items()}
    result = dict(
        metrics={name: value if value is None else float(value) for name, value in metrics.items()},
        kept={name: _scalar(runner, f'test/test_kept_tokens{suffix}') for name, suffix in KEPT.items()},
        **(choice or dict(thresholds=None, max_tokens=None)),
        iterations=cfg.train_cfg.max_iters if cell.training.share else 0,
        curve=_curve(runner, cell), resumed_at=resumed_at)
    if cell.patches is None and cell.training == SCRATCH:
        buffer = {'state_dict': runner.model.state_dict()}
        write_atomically(job.work_dir / WEIGHTS, lambda file: torch.save(buffer, file))
    result['times'] = time_against_dense(cfg, runner.model, *job.timing_rounds) if cell.patches is not None else None
    return result


def _config(job: Job, choice: dict[str, Any] | None = None) -> Config:
    return build_config(job.cell, job.dataset, job.configs, job.data_root, choice, job.weights)


def _choose(job: Job) -> dict[str, Any]:
    """What ``build_config`` wants to know of the patches."""
    cfg, patches = _config(job), job.cell.patches

    def find(patches: Patches) -> dict[str, Any]:
        return find_cell_thresholds(cfg, patches, job.code, job.thresholds)

    choice = find(patches)
    if job.cell.training.is_warm:
        choice['warm'] = [find(replace(patches, kept=kept))['thresholds'] for kept in WARM_KEPT]
    return choice


def _train(cfg: Config) -> tuple[Runner, int]:
    """Train as tools/train.py --resume does; return the runner and the iteration that it went on from."""
    make_fault_tolerant(cfg)
    with launch.claim_output_dirs(cfg):
        start.set_start(cfg, 'auto')
        resumed_at = int(Path(cfg.load_from).stem.removeprefix('iter_')) if cfg.resume else 0
        runner = launch.build_runner(cfg)
        runner.train()
    return runner, resumed_at


def _scalar(runner: Runner, name: str) -> float:
    return float(runner.message_hub.get_scalar(name).current())


def _curve(runner: Runner, cell: Cell) -> list[tuple[int, float]]:
    """Iteration and main metric of the validations of a training from random weights."""
    name = f'val/{MAIN_METRICS[cell.task]}'
    if cell.training.start != 'random' or name not in runner.message_hub.log_scalars:
        return []
    values = runner.message_hub.get_scalar(name).data[0].tolist()
    interval = runner.cfg.train_cfg.val_interval
    # The last one comes at the end, also where the interval does not divide it.
    return [(min(interval * number, runner.max_iters), float(value)) for number, value in enumerate(values, start=1)]


def provenance() -> dict[str, Any]:
    """Where, when and with what a result was made."""
    def git(*arguments: str) -> str | None:
        done = subprocess.run(['git', '-C', ROOT, *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git('status', '--porcelain', '--untracked-files=no')
    return dict(commit=git('rev-parse', '--short=12', 'HEAD'), uncommitted=None if changed is None else bool(changed),
                torch=torch.__version__, processor=_processor(), date=datetime.date.today().isoformat())


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    models = [line.partition(':')[2].strip() for line in Path('/proc/cpuinfo').read_text().splitlines()
              if line.startswith('model name')] if Path('/proc/cpuinfo').is_file() else []
    return (models or [platform.processor() or platform.machine()])[0]


def clean_up(work_dir: Path) -> None:
    """Remove the checkpoints to resume from: the cell is done.  ``WEIGHTS``, where there is one, stays."""
    for path in work_dir.glob('iter_*.pth'):
        path.unlink()
    (work_dir / 'last_checkpoint').unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    job = Job.read(Path((arguments or sys.argv[1:])[0]))
    torch.set_num_threads(1)
    start, start_process = time.perf_counter(), time.process_time()
    try:
        with DefaultScope.overwrite_default_scope(SCOPES[job.cell.task]):
            outcome = dict(status='done', **run_cell(job))
    except signals.TrainingStopped as stopped:
        print(stopped, file=sys.stderr)
        return signals.EXIT_STOPPED
    except Exception as error:
        traceback.print_exc()
        outcome = dict(status='failed', error=f'{type(error).__name__}: {error}')
    seconds = dict(wall=time.perf_counter() - start, process=time.process_time() - start_process)
    content = dict(cell=job.cell.to_json(), hash=job.hash, code=job.code, parent=job.parent, **outcome,
                   seconds=seconds, **provenance())
    write_atomically(job.work_dir / RESULT, json.dumps(content) + '\n')
    if outcome['status'] == 'done':
        clean_up(job.work_dir)
    return 0


if __name__ == '__main__':
    sys.exit(main())
