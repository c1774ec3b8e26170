"""The steps of gpu_hour.py, in the order of what is learned from them."""
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

BENCHMARK = '-m apt_dense.benchmark'
OPENMMLAB = ('mmengine', 'mmcv', 'mmdet', 'mmseg')


@dataclass(frozen=True)
class Step:
    """Commands that are run one after the other.

    Attributes:
        name: also of its files.
        commands: what Python runs, as a shell splits it; OUT in it is the folder.
        minutes: it is stopped after.
        needs: modules without which it is left out.
        kind: of its NAME.json: 'benchmark', 'whole', 'attention', 'setup'; '' if it writes none.
    """
    name: str
    commands: tuple[str, ...]
    minutes: float
    needs: tuple[str, ...] = ()
    kind: str = ''

    def obstacle(self) -> str | None:
        """Why it cannot run here, or None."""
        missing = [name for name in self.needs if find_spec(name) is None]
        return f'needs {", ".join(missing)}' if missing else None

    def command_lines(self, out: Path) -> list[list[str]]:
        """Its commands for this Python and this folder, which may have spaces in its name."""
        return [[sys.executable, *(word.replace('OUT', str(out)) for word in shlex.split(command))]
                for command in self.commands]


def steps(device: str, quick: bool) -> Iterator[Step]:
    """All steps; ``quick``: small models and sizes, to try the script."""
    dtype = 'float32' if device == 'cpu' else 'bfloat16'
    yield Step('setup', (f'tools/benchmark/check_gpu.py --device {device} --json OUT/setup.json',), 2, kind='setup')
    yield _tests('tests_gpu', 'tests/gpu' + (' -m "not slow"' if quick else ''), 4)
    rows = '--suite gpu' if not quick else (
        f'--model Ti --geometry det seg --img-size 512 --depth 2 --device {device} --dtype {dtype}')
    rounds = '--warmup 1 --repeats 2' if quick else '--warmup 5 --repeats 15'
    kept = '0.9 0.5' if quick else '0.9 0.7 0.5 0.3'

    def benchmark(name: str, options: str, minutes: float, memory: str = '--no-memory') -> Step:
        command = f'{BENCHMARK} {rows} --new-images {options} {rounds} {memory} --json OUT/{name}.json'
        return Step(name, (command,), minutes, kind='benchmark')

    yield benchmark('no_reduction', '--kept 1 --batch 1 --mode forward', 2)
    yield benchmark('kept', f'--kept {kept} --batch 1 --mode forward', 4)
    yield benchmark('no_reduction_train', '--kept 1 --batch 1 --mode train --no-stages', 2)
    yield benchmark('kept_train', f'--kept {kept} --batch 1 --mode train --no-stages', 5)
    yield from _whole_models(quick)
    shrink = ' --shrink 16 --lengths 3' if quick else ''
    yield Step('attention', (f'{BENCHMARK}.attention --device {device} --dtype {dtype}{shrink} --json '
                             'OUT/attention.json',), 1, kind='attention')
    yield benchmark('memory', f'--kept 0.7 --batch {"1" if quick else "2"} --mode train --no-stages', 2, '')
    yield benchmark('batch', f'--kept 1 0.7 --batch {"2" if quick else "8"} --mode forward --no-stages', 3)
    core = 'tests/core/test_attention.py tests/core/test_layout.py' if quick else 'tests/core'
    yield _tests('tests_core', core, 4)
    one = '' if quick else '--model L --img-size 512 1536 '
    yield benchmark('proportional', f'{one}--kept 0.7 --batch 1 --mode forward train --proportional 0 1 --no-stages', 6)
    yield benchmark('compiled', f'{one}--kept 0.7 --batch 1 --mode forward train --compiled 1 --no-stages', 5)
    yield benchmark('graphs', f'{one}--kept 0.7 0.3 --batch 1 --mode forward --graph-tokens 256 --no-stages', 2)
    for backend in ('sdpa', 'torch_varlen', 'flash_attn', 'fa3'):
        yield benchmark(f'backend_{backend}', f'{one}--kept 0.7 --batch 1 --mode forward train --no-stages --backend '
                        f'{backend}', 2)
    yield Step('profile', (f'{BENCHMARK} {rows} {one}--kept 0.7 --batch 1 --mode forward --profile',), 1)
    models = 'tests/mm/models/test_normalisation.py' if quick else 'tests/mm/models'
    yield _tests('tests_models', models, 4, OPENMMLAB)


def _tests(name: str, paths: str, minutes: float, needs: tuple[str, ...] = ()) -> Step:
    command = f'-m pytest -p no:cacheprovider --durations 0 --durations-min 30 {paths} --junitxml OUT/{name}.xml'
    return Step(name, (command,), minutes, ('pytest', 'numpy', *needs))


def _whole_models(quick: bool) -> Iterator[Step]:
    """A detector and a segmentor with random weights on synthetic images, no two of one number of tokens."""
    pairs = {'det': ('eva02_ti_demo_det', 256), 'seg': ('eva02_ti_demo_seg', 256)} if quick else {
        'det': ('eva02_l_coco', 1536), 'seg': ('eva02_l_ade20k_512', 512), 'seg_640': ('eva02_l_ade20k_640', 640)}
    rounds, warmup = (3, 1) if quick else (30, 5)
    for kind, (dense, img_size) in pairs.items():
        name = f'whole_{kind}'
        make = (f'tools/benchmark/synthetic_dataset.py OUT/{name} --apt apt_{dense} --dense {dense} --img-size '
                f'{img_size} --num-images {rounds + warmup}')
        run = (f'tools/benchmark/benchmark_model.py OUT/{name}/apt.py --against OUT/{name}/dense.py '
               f'--num-batches {rounds + warmup} --max-iter {rounds} --num-warmup {warmup} --amp --json OUT/')
        yield Step(name, (make, f'{run}{name}.json'), 3, OPENMMLAB, 'whole')
        if not quick:
            yield Step(f'{name}_compiled', (f'{run}{name}_compiled.json --cfg-options model.backbone.compiled=True',),
                       3, OPENMMLAB, 'whole')
