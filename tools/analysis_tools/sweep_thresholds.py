#!/usr/bin/env python
"""Accuracy and measured speed of a trained model at several thresholds, without training.

    python tools/analysis_tools/sweep_thresholds.py work_dirs/mine/iter_3000.pth
    python tools/analysis_tools/sweep_thresholds.py work_dirs/mine/iter_3000.pth --kept 0.9 0.7 0.5 --out-dir sweep
    python tools/analysis_tools/sweep_thresholds.py apt_eva02_l_ade20k_512 --weights apt_l.pth \\
        --thresholds 3e-4 3e-4 --thresholds 1e-3 1e-3

The test dataset and the evaluator are those of the model's config, as in tools/test.py.  For --kept, thresholds are
found on pictures of that dataset, or of --calibrate-on; labels are not looked at.  Kept tokens leave out padding.

Times are of single images in memory, without loading, in turns with the dense setting (thresholds of -1: nothing is
merged), and a speed-up is the median of the ratios.  Written into --out-dir: sweep.png, the Pareto front with its
thresholds; sweep.json, all figures; and the table is printed, with lines to copy into a config.
"""
import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from apt_dense.benchmark.measure import Marks, interleave, keep_freed_memory
from apt_dense.benchmark.run import device_name, environment
from apt_dense.calibration.shares import thresholds_for
from apt_dense.command_line import at_least
from apt_dense.core.files import check_folder, write_atomically
from apt_dense.drawing.saving import save_figure
from apt_dense.extras import from_extra

with from_extra('mm'):
    from mmengine.registry import DefaultScope
    from tqdm import tqdm

    import apt_dense.mm  # noqa: F401
    from apt_dense.mm.cli.launch import run_tool
    from apt_dense.mm.data.inputs import ConfigInputs
    from apt_dense.mm.errors import DataError
    from apt_dense.mm.inference import Model, load
    from apt_dense.mm.inference.calibrating import calibration_images, score_all
    from apt_dense.mm.inference.evaluation import Evaluation, set_options
    from apt_dense.mm.preflight.configs_evaluation import metric_names
    from apt_dense.mm.preflight.options import OptionsAction
with from_extra('tools'):
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

DEFAULT_KEPT = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
MAIN_METRICS = ('coco/segm_mAP', 'coco/bbox_mAP', 'mIoU')  # the first that the evaluator gives is the plot's


@dataclass
class Setting:
    """Thresholds, and what was measured with them.

    Attributes:
        name: 'dense', "the config's", '70 % kept', 'given'.
        thresholds: fine to coarse.
        metrics: of the evaluator.
        kept: tokens over cells of all images, padding left out.
        speedup: by part, 'backbone' and 'model', the median of the dense setting's time over this one's.
        speedup_range: the least and the largest ratio, likewise.
        seconds: of an image, the median, likewise.
        on_front: nothing measured is both faster and better.
    """
    name: str
    thresholds: tuple[float, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    kept: float = 1.0
    speedup: dict[str, float] = field(default_factory=dict)
    speedup_range: dict[str, tuple[float, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    on_front: bool = False


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='a checkpoint, or the name or file of a config (then with --weights)')
    parser.add_argument('--weights', help='checkpoint of the config; official EVA-02 files are converted on the way')
    parser.add_argument('--kept', type=float, nargs='+', help='shares of the tokens to keep (default: '
                        f'{" ".join(map(str, DEFAULT_KEPT))}, those that can be reached)')
    parser.add_argument('--thresholds', type=float, nargs='+', action='append', default=[],
                        help='fine to coarse; may be given several times')
    parser.add_argument('--calibrate-on', nargs='+', metavar='INPUT', help='pictures or folders to find thresholds on')
    parser.add_argument('--calibration-images', type=int, default=500,
                        help='find thresholds on so many, evenly picked (%(default)s)')
    parser.add_argument('--metric', help='of the evaluator, for front and plot (default: the first that there is of '
                        f'{", ".join(MAIN_METRICS)})')
    parser.add_argument('--time-images', type=int, default=8, help='images that are timed, evenly picked (%(default)s)')
    parser.add_argument('--rounds', type=int, default=3, help='times each (%(default)s)')
    parser.add_argument('--clock', choices=['process', 'wall'], default='process',
                        help='on a CPU; process: processor time of this process, of all threads together (default)')
    parser.add_argument('--threads', type=at_least(1), help='of a CPU')
    parser.add_argument('--out-dir', type=Path, default=Path('sweep'), help='(%(default)s)')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, default={}, metavar='KEY=VALUE',
                        help='where the test data is: test_dataloader.dataset.data_root=PATH ...')
    args = parser.parse_args(arguments)
    for name in ('calibration_images', 'time_images', 'rounds', 'threads'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} {getattr(args, name)}: wanted 1 or more')
    for kept in args.kept or ():
        if not 0 < kept <= 1:
            parser.error(f'--kept {kept:g} is no share of the tokens: give numbers in (0, 1]')
    return args


def open_model(args: argparse.Namespace) -> Model:
    """The model, tested as published; a dense one gets sizes of patches, which are merged untrained."""
    model = load(args.model, args.weights, as_published=True)
    if not model.thresholds:
        values = args.thresholds[:1] and (-1.0,) * len(args.thresholds[0])
        model = load(args.model, args.weights, as_published=True, thresholds=values or None,
                     kept=None if values else 1.0)
        backbone = model.cfg.model.backbone
        counted = ', and count in attention by their cells' if backbone.get('proportional_attention') else ''
        print(f"the model is dense: patches merge untrained, scored by {backbone.get('scorer', 'entropy')}{counted}")
    set_options(model.cfg, args.cfg_options)
    return model


def find_settings(args: argparse.Namespace, model: Model, images: list[Path] | None) -> list[Setting]:
    """The dense setting first, then the config's own, those of the shares, and those given; none of them twice.

    Args:
        images: to find the thresholds of shares with, by default the test dataset's.

    Raises:
        DataError: for a share of --kept that is out of reach, or another number of thresholds than the model's.
    """
    found = [Setting('dense', (-1.0,) * len(model.thresholds)), Setting("the config's", model.thresholds)]
    for values in args.thresholds:
        if len(values) != len(model.thresholds):
            raise DataError(f'--thresholds {" ".join(f"{value:g}" for value in values)}: the model has '
                            f'{len(model.thresholds) + 1} sizes of patches, give {len(model.thresholds)}, fine to '
                            'coarse')
    shares = args.kept or (() if args.thresholds else DEFAULT_KEPT)
    if shares:
        inputs = ConfigInputs(model.cfg, images=images)
        count = min(args.calibration_images, len(inputs))
        maps = score_all(inputs, tqdm([position * len(inputs) // count for position in range(count)], desc='scoring',
                                      unit='image', disable=None))
    for kept in shares:
        try:
            found.append(Setting(f'{kept:.4g} kept', thresholds_for(maps, kept, model.thresholds)))
        except ValueError as error:
            if args.kept:
                raise DataError(f'--kept {kept:g}: {error}') from error
            print(f'{kept:g} kept is left out: {error}', file=sys.stderr)
    found += [Setting('given', tuple(values)) for values in args.thresholds]
    return list({setting.thresholds: setting for setting in reversed(found)}.values())[::-1]


@torch.no_grad()
def seconds_of(model: Model, setting: Setting, batch: dict[str, list], clock: str) -> dict[str, float]:
    """Seconds of one image: 'backbone', and 'model', everything but loading."""
    model.thresholds = setting.thresholds
    marks = Marks(model.device, clock)
    handles = marks.hook('backbone', model.module.backbone)
    marks.mark()
    model.module.test_step(batch)
    marks.mark()
    for handle in handles:
        handle.remove()
    seconds = marks.seconds()
    return dict(backbone=seconds['backbone'], model=sum(seconds.values()))


def measure_speed(model: Model, settings: Sequence[Setting], batches: Sequence[dict], rounds: int, clock: str) -> None:
    """Fill in seconds and speed-ups over the first setting, each image in turns with all settings."""
    turns = dict.fromkeys(range(len(settings)), 0)

    def run(number: int) -> dict[str, float]:
        turns[number] += 1
        return seconds_of(model, settings[number], batches[(turns[number] - 1) % len(batches)], clock)

    with DefaultScope.overwrite_default_scope(model.cfg.default_scope):
        times = interleave({number: lambda number=number: run(number) for number in turns},
                           len(batches) * rounds, len(batches))
    for number, setting in enumerate(settings):
        for part in ('backbone', 'model'):
            own, dense = ([sample[part] for sample in times[which]] for which in (number, 0))
            ratios = [base / time for base, time in zip(dense, own, strict=True)]
            setting.speedup[part], setting.speedup_range[part] = statistics.median(ratios), (min(ratios), max(ratios))
            setting.seconds[part] = statistics.median(own)


def mark_front(settings: Sequence[Setting], metric: str) -> None:
    """Mark the settings that no other beats: faster and no worse, or better and no slower."""
    places = [(setting.speedup['model'], setting.metrics[metric]) for setting in settings]
    for setting, place in zip(settings, places, strict=True):
        setting.on_front = not any(other != place and other[0] >= place[0] and other[1] >= place[1]
                                   for other in places)


def main_metric(wanted: str | None, metrics: Iterable[str]) -> str:
    """The name of the plot's metric.

    Raises:
        DataError: if the evaluator does not give it.
    """
    if wanted is not None and wanted not in metrics:
        raise DataError(f'--metric {wanted}: the evaluator gives {", ".join(metrics)}')
    return wanted or next((name for name in MAIN_METRICS if name in metrics), next(iter(metrics)))


def describe(settings: Sequence[Setting], metric: str) -> str:
    """The table, a star for the Pareto front, and the lines for a config."""
    others = [name for name in MAIN_METRICS if name in settings[0].metrics and name != metric]
    lines = [f'  {"":14}{"thresholds":28}{"kept":>7}' + ''.join(f'{name:>16}' for name in (metric, *others)) +
             f'{"backbone":>11}{"model":>9}']
    for setting in settings:
        numbers = ''.join(f'{setting.metrics.get(name, float("nan")):16.4g}' for name in (metric, *others))
        lines.append(f'{"*" if setting.on_front else " "} {setting.name:14}{listed(setting.thresholds):28}'
                     f'{setting.kept:7.1%}{numbers}{setting.speedup["backbone"]:10.2f}x{setting.speedup["model"]:8.2f}x')
    lines += ['*: nothing here is both faster and better.  To copy into a config:']
    lines += [f'model = dict(backbone=dict(num_scales={len(setting.thresholds) + 1}, thresholds={setting.thresholds}'
              f'))  # {setting.kept:.1%} kept, {metric} {setting.metrics[metric]:.4g}, {setting.speedup["model"]:.2f} x'
              for setting in settings if setting.on_front]
    return '\n'.join(lines)


def listed(thresholds: Sequence[float]) -> str:
    return ' '.join(f'{value:.4g}' for value in thresholds)


def draw(path: Path, settings: Sequence[Setting], metric: str, title: str) -> None:
    """The metric against speed-up and against kept tokens, and the front's thresholds below."""
    front = sorted((setting for setting in settings if setting.on_front), key=lambda one: one.speedup['model'])
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.4 + 0.17 * len(front)), sharey=True)
    places = [lambda one: one.speedup['model'], lambda one: 100 * one.kept]
    for axis, place in zip(axes, places, strict=True):
        for chosen, colour, label in ((True, '#c8502d', 'Pareto front'), (False, '#8a8f98', 'others')):
            shown = [one for one in settings if one.on_front == chosen]
            if shown:
                axis.plot([place(one) for one in shown], [one.metrics[metric] for one in shown], 'o', color=colour,
                          label=label)
        for one in settings:
            axis.annotate(f' {one.name}', (place(one), one.metrics[metric]), fontsize=8, xytext=(3, 4),
                          textcoords='offset points')
        axis.grid(alpha=0.3)
        axis.margins(x=0.18, y=0.12)
    axes[0].plot(list(map(places[0], front)), [one.metrics[metric] for one in front], color='#c8502d',
                 lw=1, drawstyle='steps-post')
    axes[0].set(xlabel='speed-up of the model over nothing merged, measured', ylabel=metric)
    axes[0].legend(fontsize=9)
    axes[1].set(xlabel='kept tokens, % of the cells that hold content')
    axes[1].invert_xaxis()
    figure.suptitle(title)
    lines = [f'{one.name:14} kept {one.kept:6.1%}  {metric} {one.metrics[metric]:.4g}  {one.speedup["model"]:.2f} x  '
             f'thresholds=({", ".join(f"{value:g}" for value in one.thresholds)})' for one in front]
    height = 0.17 * len(front) / figure.get_figheight()
    figure.tight_layout(rect=(0, height + 0.04, 1, 1))
    figure.text(0.03, 0.02, '\n'.join(lines), family='monospace', fontsize=9, va='bottom')
    save_figure(figure, path, dpi=110)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    check_folder(args.out_dir, '--out-dir')
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    images = calibration_images(args.calibrate_on, '--calibrate-on') if args.calibrate_on else None
    model = open_model(args)
    evaluation = Evaluation(model.cfg)
    known = metric_names(model.cfg, 'test')
    if args.metric and known is not None:
        main_metric(args.metric, known)
    settings = find_settings(args, model, images)
    for setting in settings:
        model.thresholds = setting.thresholds
        setting.metrics = evaluation.evaluate(model, progress=lambda batches, name=setting.name: tqdm(
            batches, desc=name, unit='image', disable=None))
        setting.kept = setting.metrics.pop('kept_tokens_content')
    metric = main_metric(args.metric, settings[0].metrics)
    count = min(args.time_images, len(evaluation))
    batches = [evaluation.batch(position * len(evaluation) // count) for position in range(count)]
    measure_speed(model, settings, batches, args.rounds, args.clock)
    mark_front(settings, metric)
    how = (f'{len(evaluation)} images; times of {count} x {args.rounds}, {device_name(model.device)}, float32, '
           f'{args.clock} time')
    print(f'{args.model}, {how}\n{describe(settings, metric)}')
    words = ['python tools/analysis_tools/sweep_thresholds.py', *(arguments or sys.argv[1:])]
    content: dict[str, Any] = dict(environment=environment(words), setting=how, metric=metric,
                                   settings=[vars(setting) for setting in settings])
    write_atomically(args.out_dir / 'sweep.json', json.dumps(content, indent=1) + '\n')
    draw(args.out_dir / 'sweep.png', settings, metric, f'{Path(args.model).name}, {len(evaluation)} images')
    print(f'-> {args.out_dir}/sweep.json, sweep.png')


if __name__ == '__main__':
    sys.exit(run_tool(main))
