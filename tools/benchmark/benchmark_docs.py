#!/usr/bin/env python
"""Measure what docs/benchmarks.md and docs/benchmarks/tables.md report, and write their tables and charts.

    python tools/benchmark/benchmark_docs.py                  # everything that this machine can measure
    python tools/benchmark/benchmark_docs.py --only growth tome
    python tools/benchmark/benchmark_docs.py --no-run         # the tables again, from docs/benchmarks/*.json

Each run writes docs/benchmarks/NAME.json. The part of docs/benchmarks/tables.md between <!-- NAME --> and
<!-- end of NAME --> is made from that, so figures and commands cannot differ; the goals of docs/benchmarks.md and the
charts are made from the same files.  Runs on a GPU are left out where there is none, and the page then says so.
"""
import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from apt_dense.benchmark import charts, report, scoring, summary
from apt_dense.benchmark.report import rewrite
from apt_dense.core.files import write_atomically
from apt_dense.extras import install_command

ROOT = Path(__file__).parents[2]
BUSY = '--threads 1 --clock process'  # figures that other work on the machine changes least


@dataclass(frozen=True)
class Run:
    """One call of a benchmark.

    Attributes:
        arguments: of the program.
        tables: functions of ``report`` that show its rows.
        photos: files of skimage.data that it takes.
        program: what Python runs.
        needs: files that other commands make, without which it is left out.
    """
    arguments: str
    tables: tuple[str, ...] = ('times',)
    photos: tuple[str, ...] = ()
    program: str = '-m apt_dense.benchmark'
    needs: tuple[str, ...] = ()

    @property
    def on_gpu(self) -> bool:
        """True if it needs a GPU."""
        return '--device cuda' in self.arguments or '--suite gpu' in self.arguments

    def obstacle(self) -> str | None:
        """Why it cannot run here, or None."""
        if self.on_gpu and not torch.cuda.is_available():
            return 'needs a GPU'
        if self.photos and find_spec('skimage') is None:
            return f'takes photographs of scikit-image: pip install scikit-image, or {install_command("tools")}'
        missing = [name for name in self.needs if not (ROOT / name).is_file()]
        return f'needs {", ".join(missing)}, see the page' if missing else None

    def command(self, name: str) -> list[str]:
        """What Python runs, with the files that are written."""
        photos = [f'{skimage_data()}/{photo}' for photo in self.photos]
        return [*shlex.split(self.program), *photos, *shlex.split(self.arguments), '--json',
                f'docs/benchmarks/{name}.json']


SCORING = '-m apt_dense.benchmark.scoring'
WHOLE = 'tools/benchmark/benchmark_model.py'
SCENES = ('data/demo/val/000000.jpg', 'data/demo/val/000008.jpg')
DEMO = 'work_dirs/{}/iter_500.pth'  # what `make demo` and its kind train


def _against_dense(kind: str) -> Run:
    """The demo's detector or segmentor against its dense twin, on the demo's validation images."""
    files = {name: DEMO.format(name) for name in (f'apt_eva02_ti_demo_{kind}', f'eva02_ti_demo_{kind}')}
    (apt, apt_weights), (dense, dense_weights) = files.items()
    return Run(f'configs/{apt}.py {apt_weights} --against configs/{dense}.py --against-checkpoint {dense_weights} '
               f'--num-batches 50 --max-iter 50 {BUSY}', program=WHOLE, needs=(apt_weights, dense_weights))


PHOTOS = ('astronaut.png', 'coffee.png', 'chelsea.png')
RUNS = {
    'paper': Run(f'--suite paper --repeats 2 --no-memory --no-stages {BUSY}', ('paper', 'times')),
    'overhead': Run(f'--suite overhead --geometry det --mode forward --repeats 4 --no-memory {BUSY}',
                    ('times', 'stages')),
    'overhead_512': Run('--suite overhead --model L --geometry seg --img-size 512 --mode forward --repeats 8 '
                        f'--no-memory {BUSY}', ('times', 'stages')),
    'overhead_train': Run(f'--suite overhead --model B --mode train --warmup 2 --repeats 2 --no-memory '
                          f'--no-stages {BUSY}'),
    'overhead_train_l': Run('--suite overhead --model L --geometry det --mode train --with-cp 1 --depth 12 --repeats 1 '
                            f'--no-memory --no-stages {BUSY}'),
    'overhead_train_512': Run('--suite overhead --model L --geometry seg --img-size 512 --mode train --warmup 2 '
                              f'--repeats 3 --no-memory --no-stages {BUSY}'),
    'kept': Run(f'--suite kept --mode forward --repeats 2 --no-memory {BUSY}', ('times', 'stages')),
    'kept_l': Run(f'--model L --kept 0.9 0.7 0.5 0.3 --repeats 1 --no-memory --no-stages {BUSY}'),
    'kept_train': Run(f'--suite kept --mode train --warmup 2 --repeats 1 --no-memory --no-stages {BUSY}'),
    'scoring': Run(BUSY, program=SCORING),
    'memory': Run(f'--suite memory --no-stages --warmup 0 --repeats 1 {BUSY}', ('memory',)),
    'deterministic': Run(f'--model B --depth 2 --mode forward train --deterministic 0 1 --no-memory --no-stages '
                         f'{BUSY}'),
    'bfloat16': Run(f'--model B --kept 1.0 0.7 --dtype float32 bfloat16 --no-memory --no-stages {BUSY}'),
    'compiled': Run(f'--model B --depth 4 --compiled 0 1 --mode forward train --dtype float32 bfloat16 --no-memory '
                    f'--no-stages {BUSY}'),
    'growth': Run(f'--suite growth --no-memory --no-stages {BUSY}'),
    'unequal': Run(f'--suite unequal --no-stages {BUSY}', ('unequal', 'memory')),
    'tome': Run(f'--model S --geometry det seg --img-size 1024 --tome --no-memory --no-stages --repeats 2 {BUSY}',
                ('times', 'distance'), photos=PHOTOS),
    'tome_demo': Run(f'{" ".join(SCENES)} --model Ti --geometry seg --img-size 256 '
                     '--thresholds 3.5 3.5 3 --tome --no-memory --no-stages --repeats 9 '
                     f'--checkpoint {DEMO.format("apt_eva02_ti_demo_seg")} {BUSY}', ('times', 'distance'),
                     program='tools/benchmark/benchmark.py',
                     needs=(*SCENES, DEMO.format('apt_eva02_ti_demo_seg'))),
    'demo_det': _against_dense('det'),
    'demo_seg': _against_dense('seg'),
    'photograph': Run(f'--model B L --repeats 2 {BUSY}', ('times', 'stages', 'memory'), photos=('rocket.jpg',)),
    'gpu_short': Run('--suite gpu_short --new-images --warmup 4 --repeats 12 --no-stages --no-memory'),
    'gpu': Run('--suite gpu', ('times', 'memory')),
    'gpu_kept': Run('--model B L --kept 1 0.9 0.7 0.5 0.3 --mode forward train --compiled 0 1 --device cuda '
                    '--dtype bfloat16', ('times', 'stages', 'memory')),
    'gpu_memory': Run('--suite memory --device cuda --dtype bfloat16', ('memory',)),
}


def skimage_data() -> Path:
    """The folder of scikit-image's photographs, without importing it."""
    return Path(find_spec('skimage').origin).parent / 'data'


def shown_command(run: Run) -> str:
    """The command as the page shows it."""
    photos = ' '.join(f'$PHOTOS/{photo}' for photo in run.photos)
    words = ' '.join(part for part in ('python', run.program, photos, run.arguments) if part)
    return f'```bash\n{words}\n```'


def section(name: str, run: Run, folder: Path) -> str:
    """What the page shows of a run: its command, where and when it ran, its tables."""
    path = folder / f'{name}.json'
    if not path.is_file():
        return f'Not measured. The command:\n\n{shown_command(run)}'
    content = json.loads(path.read_text(encoding='utf-8'))
    environment = content['environment']
    if run.program == WHOLE:
        description, tables = content['setting'], [report.whole_table(content['results'])]
    elif run.program == SCORING:
        description, tables = scoring.describe(content['rows']), [scoring.table(content['rows'])]
    elif not content['rows']:
        description, tables = 'no row', []
    else:
        description = report.describe(content['rows'])
        tables = [getattr(report, f'{table}_table')(content['rows']) for table in run.tables]
    parts = [shown_command(run), f'{environment["date"]}, {description}, torch {environment["torch"]}:', *tables]
    if content.get('left_out'):
        parts.append(f'Did not fit the GPU: {"; ".join(content["left_out"])}.')
    return '\n\n'.join(parts)


def update(path: Path, parts: dict[str, str]) -> None:
    """Replace these parts of a page.

    Raises:
        ValueError: if the page lacks one of them.
    """
    text = path.read_text(encoding='utf-8')
    for name, part in parts.items():
        text = rewrite(text, name, part)
    write_atomically(path, text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', choices=RUNS, default=list(RUNS), help='these runs')
    parser.add_argument('--no-run', action='store_true', help='measure nothing, only write the tables')
    args = parser.parse_args(arguments)
    failed = []
    for name in () if args.no_run else args.only:
        run = RUNS[name]
        if run.obstacle():
            print(f'[{name}] left out: {run.obstacle()}', flush=True)
            continue
        print(f'[{name}] {run.arguments}', flush=True)
        if subprocess.run([sys.executable, *run.command(name)], cwd=ROOT).returncode:
            failed.append(name)
    folder = ROOT / 'docs/benchmarks'
    update(folder / 'tables.md', {name: section(name, run, folder) for name, run in RUNS.items()})
    update(ROOT / 'docs/benchmarks.md', {'summary': summary.table(folder)})
    for name in charts.CHARTS:
        if not charts.save(folder, name):
            print(f'[{name}] no chart: one of {", ".join(charts.CHARTS[name].files)} is not measured', flush=True)
    if failed:
        print(f'error: {", ".join(failed)} failed, see above; the page has their old figures', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
