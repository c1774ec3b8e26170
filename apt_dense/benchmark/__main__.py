"""Speed and memory of the APT backbone against its dense twin, from the image to the feature map.

    python -m apt_dense.benchmark --model B --kept 0.9 0.7 0.5 0.3
    python -m apt_dense.benchmark photo.jpg --model L --thresholds 2 2 0.3 --json photo.json
    python -m apt_dense.benchmark --model L --geometry seg --img-size 512 640 --mode forward train
    python -m apt_dense.benchmark --model B --kept 1              # no reduction: thresholds of -1
    python -m apt_dense.benchmark --model Ti --geometry seg --img-size 512 --kept 0.9,0.2,0.2,0.3   # unequal images
    python -m apt_dense.benchmark --suite growth --plot growth.png --json growth.json
    python -m apt_dense.benchmark --suite paper --device cuda --dtype bfloat16 --batch 1 2 4 8
    python tools/benchmark/benchmark.py photo.jpg --model Ti --geometry demo --img-size 256 --tome \\
        --checkpoint work_dirs/apt_eva02_ti_demo_det/iter_500.pth

Both models have the same weights and run in turns in one process.  On synthetic images the wanted fraction of the
tokens is kept to 1.5 tokens; photographs take --thresholds.  "Ideal" is the dense model's multiply-adds over APT's,
attention included.  Needs torch only; numpy and Pillow for photographs, matplotlib for plots.
"""
import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from apt_dense.benchmark import encoders, report
from apt_dense.benchmark.cases import DETECTION_THRESHOLDS, DTYPES, GEOMETRIES, MODES, Case
from apt_dense.benchmark.measure import CLOCKS, keep_freed_memory, profile
from apt_dense.benchmark.run import Row, check_tome, environment, run_case
from apt_dense.benchmark.suites import SUITES
from apt_dense.command_line import at_least, device, share, target
from apt_dense.core.attention import BACKENDS
from apt_dense.extras import install_command

PACKAGES = {'PIL': 'pillow'}


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='python -m apt_dense.benchmark', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_row_arguments(parser)
    parser.add_argument('--clock', choices=list(CLOCKS), help='CPU only; process: of this process, for busy machines '
                        '(wall)')
    parser.add_argument('--repeats', type=at_least(1), help='rounds that count (CPU 3, GPU 20)')
    parser.add_argument('--warmup', type=at_least(0), help='rounds before them (CPU 1, GPU 5)')
    parser.add_argument('--new-images', action='store_true', help='another batch in each round, of another number of '
                        'tokens: what a GPU does once for each number is counted')
    parser.add_argument('--threads', type=at_least(1), help='of a CPU')
    parser.add_argument('--tome', action='store_true', help='token merging too, at as many tokens; and distances')
    parser.add_argument('--checkpoint', type=Path, help='weights of the backbone, by eva02_to_mm.py; by tools/train.py '
                        'with tools/benchmark/benchmark.py')
    parser.add_argument('--profile', action='store_true', help="only torch's table of the operators, dense and APT")
    parser.add_argument('--no-stages', dest='stages', action='store_false', help='do not split the time')
    parser.add_argument('--no-memory', dest='memory', action='store_false', help='do not measure peak memory')
    parser.add_argument('--json', type=target, help='write the rows here; FILE.part until all are measured')
    parser.add_argument('--plot', type=Path, help='draw them here')
    args = parser.parse_args(arguments)
    if args.suite and args.photos:
        parser.error('--suite has images of its own: leave the photographs out, or the suite')
    if args.photos and args.kept:
        parser.error('photographs keep what --thresholds let them: leave --kept out')
    if args.photos and args.new_images:
        parser.error('photographs are one batch: leave --new-images out')
    if args.profile and (args.json or args.plot):
        parser.error('--profile prints, and measures nothing: leave --json and --plot out')
    for option, given, extra, packages in (('PHOTO', args.photos, 'images', ('numpy', 'PIL')),
                                           ('--plot', args.plot, 'tools', ('matplotlib',))):
        for package in packages if given else ():
            if find_spec(package) is None:
                parser.error(f'{option} needs {package}: pip install {PACKAGES.get(package, package)}, or '
                             f'{install_command(extra)}')
    if args.plot:
        from apt_dense.drawing.saving import check_figure_target  # with Pillow, which figures alone need
        try:
            check_figure_target(args.plot, '--plot')
        except ValueError as error:
            parser.error(str(error))
    return args


def add_row_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is measured: every combination is a row."""
    parser.add_argument('photos', nargs='*', type=Path, metavar='PHOTO',
                        help='photographs: one row each, or one batch of them with --batch above 1')
    rows = parser.add_argument_group('rows', 'every combination is a row; with --suite they choose from its rows')
    rows.add_argument('--suite', choices=SUITES, help='a set of rows, see apt_dense/benchmark/suites.py')
    rows.add_argument('--model', nargs='+', choices=encoders.names(),
                      help="of EVA-02: its size (B); or another encoder's name")
    rows.add_argument('--geometry', nargs='+', choices=GEOMETRIES,
                      help='of EVA-02: detection, segmentation, the demo (det); of others: own')
    rows.add_argument('--img-size', nargs='+', type=at_least(1), help='side of the square images (1536)')
    rows.add_argument('--mode', nargs='+', choices=MODES, help='forward, or train: forward and backward (forward)')
    how = parser.add_argument_group('settings', 'every combination is a row; with --suite they replace its own')
    how.add_argument('--kept', nargs='+', type=fractions, metavar='FRACTION',
                     help='kept-token fraction of the images, or one each: 0.9,0.2; 1: no reduction (0.7)')
    how.add_argument('--batch', nargs='+', type=at_least(1), help='images of a batch (1)')
    how.add_argument('--dtype', nargs='+', choices=DTYPES, help='train runs under autocast (float32)')
    how.add_argument('--backend', nargs='+', choices=BACKENDS, help='attention (auto)')
    how.add_argument('--compiled', nargs='+', type=int, choices=(0, 1), help='torch.compile of dense and APT (0)')
    how.add_argument('--graph-tokens', nargs='+', type=at_least(0), metavar='TOKENS', help='dense and APT as CUDA '
                     'graphs, for multiples of so many tokens; forward passes on a GPU (0: none)')
    how.add_argument('--with-cp', nargs='+', type=int, choices=(0, 1), help='activation checkpointing (0)')
    how.add_argument('--proportional', nargs='+', type=int, choices=(0, 1),
                     help='APT with proportional_attention (0)')
    how.add_argument('--deterministic', nargs='+', type=int, choices=(0, 1),
                     help='torch.use_deterministic_algorithms (0)')
    how.add_argument('--device', type=device, help='cpu, cuda, cuda:1 (cpu)')
    how.add_argument('--depth', type=at_least(1), help='only so many blocks, to be quick: the geometry stays')
    how.add_argument('--thresholds', type=float, nargs='+', default=DETECTION_THRESHOLDS,
                     help='for photographs, fine to coarse (2 2 0.3)')


def fractions(text: str) -> tuple[float, ...]:
    """'0.7' or '0.9,0.2' -> kept fractions."""
    return tuple(share(part) for part in text.split(','))


def cases_of(args: argparse.Namespace) -> list[tuple[str, Case]]:
    """The wanted rows, each with the name of its group.

    Raises:
        ValueError: if the choice leaves no row of a suite, images of unequal fractions are asked for in a batch of
            another size, or token merging in a row that it does not have.
    """
    chosen = dict(model=args.model, geometry=args.geometry, img_size=args.img_size, mode=args.mode)
    settings = dict(dtype=args.dtype, backend=args.backend, graph_tokens=args.graph_tokens)
    for name in ('compiled', 'with_cp', 'proportional', 'deterministic'):
        settings[name] = [bool(value) for value in getattr(args, name) or ()]
    single = {name: [value] for name, value in dict(device=args.device, depth=args.depth, clock=args.clock,
                                                    new_images=args.new_images or None).items() if value is not None}
    settings = {name: values for name, values in settings.items() if values} | single
    chosen = {name: values for name, values in chosen.items() if values}
    if args.suite:
        cases = [(group, case) for group, case in SUITES[args.suite]()
                 if all(getattr(case, name) in values for name, values in chosen.items())]
        if not cases:
            raise ValueError(f'the suite {args.suite} has no row with {chosen}')
    else:
        base = Case(thresholds=tuple(args.thresholds))
        cases = [('rows', case) for case in base.variants(**chosen)]
        if not args.geometry:
            cases = [(group, replace(case, geometry='own') if case.model in encoders.OTHERS else case)
                     for group, case in cases]
    cases = [(group, variant) for group, case in cases for images in _images(args, case)
             for variant in case.variants(**{name: [value] for name, value in images.items()}, **settings)]
    for _, case in cases:
        if args.tome:
            check_tome(case)
        if case.graph_tokens and case.mode == 'train':
            raise ValueError('CUDA graphs are for passes without gradients: leave --graph-tokens or --mode train out')
    return list(dict.fromkeys(cases))


def _images(args: argparse.Namespace, case: Case) -> list[dict[str, tuple]]:
    """The fields of the case that say what its batch is, for each batch wanted."""
    batches = args.batch or [1 if args.photos else case.batch]
    if args.photos:
        names = [str(path) for path in args.photos]
        cycled = [tuple(itertools.islice(itertools.cycle(names), batch)) for batch in batches if batch > 1]
        return [dict(photos=photos, kept=()) for photos in [*((name,) for name in names if 1 in batches), *cycled]]
    wanted = []
    for kept in args.kept or [case.kept]:
        for batch in args.batch or [max(len(kept), case.batch)]:
            if len(set(kept)) > 1 and len(kept) != batch:
                raise ValueError(f'kept fractions {kept} are for a batch of {len(kept)}, not of {batch}')
            wanted.append(dict(kept=kept if len(kept) == batch else kept[:1] * batch))
    return wanted


def _print_profiles(args: argparse.Namespace) -> None:
    """The operators of each row's dense and APT model."""
    for _, case in cases_of(args):
        x = case.build_input()
        for kind in ('dense', 'apt'):
            model = case.build_model(kind == 'dense', args.checkpoint)
            print(f'{case.title}, {case.mode}, batch {case.batch}, {kind}:\n{profile(case, model, x)}')


def main(arguments: Sequence[str] | None = None, program: str = 'python -m apt_dense.benchmark') -> int:
    """Run the command line; ``program`` is the name under which the figures' file has it."""
    args = parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    if 1 in (args.deterministic or ()):
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # what CUDA's matrix products want for it
    try:
        if args.profile:
            _print_profiles(args)
            return 0
        rows = _run(args, [program, *(arguments or sys.argv[1:])])
    except (ValueError, ImportError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(report.report(rows))
    if args.plot and rows:
        report.plot(args.plot, rows)
    return 0


def _run(args: argparse.Namespace, words: list[str]) -> list[Row]:
    """Measure the rows.  After each they are written to a file that takes the right name when all are there."""
    # Photographs by their names: where they lie says nothing to others.
    words = [Path(word).name if Path(word).is_absolute() and Path(word) in args.photos else word for word in words]
    surroundings = environment(words)
    part = args.json and args.json.with_name(f'{args.json.name}.part')
    rows: list[Row] = []
    left_out: list[str] = []
    for group, case in cases_of(args):
        repeats = args.repeats or (20 if case.on_gpu else 3)
        warmup = (5 if case.on_gpu else 1) if args.warmup is None else args.warmup
        name = f'{case.title}, {report.mode_of(dict(case=asdict(case)))}, batch {case.batch}'
        try:
            row = run_case(case, repeats, warmup, args.tome, args.stages, args.memory, args.checkpoint)
        except torch.cuda.OutOfMemoryError:
            name += f', kept {" ".join(f"{kept:g}" for kept in case.kept)}' if case.kept else ''
            left_out.append(name)
            print(f'{name}: does not fit the GPU, left out', file=sys.stderr, flush=True)
        else:
            rows.append(row | dict(group=group))
            print(f'{name}, kept {row["kept"]:.3f}: {row["apt"]["speedup"]:.3f} times as fast, ideal '
                  f'{row["apt"]["ideal"]:.3f}', file=sys.stderr, flush=True)
        if part:
            report.save_json(part, rows, surroundings, left_out)
    if part:
        part.replace(args.json)
    return rows


if __name__ == '__main__':
    sys.exit(main())
