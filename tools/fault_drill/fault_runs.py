"""Trainings of fault_drill.py: started in processes of their own, and compared with the uninterrupted one."""
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from apt_dense.mm.fault_tolerance.run_comparison import differing, load, logged

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/apt_eva02_ti_demo_det.py'
INTERVAL = 4  # iterations from checkpoint to checkpoint
# A model of few channels on images of 128 px.
OPTIONS = [
    'model.data_preprocessor.pad_size_divisor=128', 'model.backbone.img_size=128', 'model.backbone.embed_dims=32',
    'model.backbone.depth=4', 'model.backbone.num_heads=2', 'model.backbone.window_size=4',
    'model.backbone.global_block_indexes=[1,3]', 'model.backbone.pretrain_img_size=64', 'model.backbone.num_scales=3',
    'model.backbone.scorer=entropy', 'model.backbone.thresholds=[3,3]', 'model.neck.in_channels=32',
    'train_dataloader.dataset.pipeline.3.scale=(128,128)', 'train_dataloader.dataset.pipeline.4.crop_size=(128,128)',
    'val_dataloader.dataset.pipeline.1.scale=(128,128)', 'train_dataloader.batch_size=2',
    'train_dataloader.num_workers=2', 'default_hooks.logger.interval=1', 'log_processor.window_size=5',
    f'default_hooks.checkpoint.interval={INTERVAL}', 'default_hooks.checkpoint.max_keep_ckpts=2',
]


# A pipeline that guards the loading of images, and the report of what is skipped.
GUARDED = """_base_ = './drill.py'
pipeline = list(_base_.train_dataloader.dataset.pipeline)
pipeline[0] = dict(type='GuardSamples', transforms=[pipeline[0]])
train_dataloader = dict(dataset=dict(pipeline=pipeline))
custom_hooks = [*_base_.custom_hooks, dict(type='BadDataHook')]
"""


class Outcome(NamedTuple):
    """A row of the table; ``lost`` is 'nothing' if all is well, as it had to happen too."""
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
        self.config, self.guarded, self.data = folder / 'drill.py', folder / 'guarded.py', folder / 'data'
        self.config.write_text(f"_base_ = '{CONFIG}'\n"
                               "custom_hooks = [dict(type='KeptTokensHook'), dict(type='EMAHook')]\n")
        self.guarded.write_text(GUARDED)
        subprocess.run([sys.executable, ROOT / 'tools/demo/make_demo_dataset.py', '--out',
                        self.data, '--num-train', '24', '--num-val', '2'], check=True, stdout=subprocess.DEVNULL)

    @contextmanager
    def started(self, work: Path, iterations: int, config: Path | None = None, data: Path | None = None,
                options: Iterable[str] = (), **popen: Any) -> Iterator[subprocess.Popen]:
        """Start or resume a training with its output appended to WORK.log; it does not outlive the context."""
        data = data or self.data
        options = [
            *OPTIONS, f'train_cfg.max_iters={iterations}', f'train_cfg.val_interval={3 * INTERVAL}', *options,
            *(f'{split}_dataloader.dataset.data_root={data}/' for split in ('train', 'val', 'test')),
            *(f'{split}_evaluator.ann_file={data}/annotations/instances_val.json' for split in ('val', 'test'))]
        environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', PYTHONDONTWRITEBYTECODE='1')
        with open(log_of(work), 'a') as log:
            process = subprocess.Popen(
                [sys.executable, ROOT / 'tools/train.py', config or self.config, '--work-dir', work, '--resume',
                 '--cfg-options', *options], stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self.folder,
                **popen)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def run(self, work: Path, iterations: int, **settings: Any) -> int:
        """The exit status of a training, run to its end."""
        with self.started(work, iterations, **settings) as process:
            return process.wait()

    def finish(self, work: Path, iterations: int, *unexpected: str, **settings: Any) -> str:
        """Resume to the end: what is lost, or was not as it had to be, earlier or now; 'nothing' if all is well."""
        status = self.run(work, iterations, **settings)
        return verdict(self.lost(work, iterations), *unexpected, *deviations(status, 0))

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
    """The tool's last message to the user, as ``plain`` leaves it."""
    lines = [line for line in log_of(work).read_text().splitlines() if line.startswith(('error: ', 'stopped by'))]
    if not lines or 'Traceback' in tail(work, 3000).split(lines[-1])[-1]:
        return f'no clear message: {tail(work)}'
    return plain(lines[-1])


def plain(text: str) -> str:
    """A message without what differs from machine to machine: folders, process and host."""
    text = re.sub(r'(?<![^\s(])/\S+/', '', text)  # of paths; 'archive/data/665' is the name of a record
    return re.sub(r'process \d+ on [^\s:]+', 'process N on HOST', text)


def deviations(status: int, wanted: int, said: str = '', needle: str = '') -> list[str]:
    """What of an exit status and a message is not as it must be."""
    found = [f'status {status}, not {wanted}'] if status != wanted else []
    if needle not in said or said.startswith('no clear message'):
        found.append(f'no message "{needle}"')
    return found


def verdict(lost: str, *unexpected: str) -> str:
    """``lost``, and what was unexpected."""
    return '; '.join([*([lost] if lost != 'nothing' else []), *unexpected]) or 'nothing'
