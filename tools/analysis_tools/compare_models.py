#!/usr/bin/env python
"""Compare two models on one dataset: metrics side by side, and the images on which they differ most.

    python tools/analysis_tools/compare_models.py dense/iter_3000.pth apt/iter_3000.pth
    python tools/analysis_tools/compare_models.py eva02_l_coco apt_eva02_l_coco \\
        --weights-a dense.pth --weights-b apt.pth

A and B are checkpoints, or names or files of configs with their weights.  Both are tested on the test dataset of A's
config, by its evaluator, each with its own pipeline.

Each image also has a score of its own.  Detection: F1 at IoU 0.5, of the boxes with a score from --min-score on, by
COCOeval's matching; 1 for an image without objects and without boxes.  Segmentation: the mean IoU of the classes that
occur in truth or prediction.  Written into --out-dir: compare.json; kept.png, the scores against the kept tokens; and
different/, the images whose scores differ most, with truth, both predictions and both patch grids.
"""
import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apt_dense.benchmark.run import environment
from apt_dense.command_line import between
from apt_dense.core.files import check_folder, write_atomically
from apt_dense.drawing.panels import Panel, join_panels
from apt_dense.drawing.saving import save_figure, save_picture
from apt_dense.extras import from_extra

with from_extra('mm'):
    import numpy as np
    from mmengine.config import ConfigDict
    from mmengine.structures import BaseDataElement
    from tqdm import tqdm

    import apt_dense.mm  # noqa: F401
    from apt_dense.mm.cli.launch import run_tool
    from apt_dense.mm.errors import DataError
    from apt_dense.mm.inference import Model, load
    from apt_dense.mm.inference.evaluation import Evaluation, check_classes, set_options
    from apt_dense.mm.inference.image_scores import image_scores, scored_metric
    from apt_dense.mm.inference.results import Result, Tokens
    from apt_dense.mm.preflight.options import OptionsAction
with from_extra('tools'):
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot


@dataclass
class Tested:
    """What a model has reached.

    Attributes:
        name: 'A' or 'B'.
        model: itself.
        metrics: of the evaluator, with 'kept_tokens_content'.
        scores: of each image, in the dataset's order.
        kept: of each image, tokens over cells, padding left out.
        paths: of the images.
    """
    name: str
    model: Model
    evaluation: Evaluation
    metrics: dict[str, float] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in 'ab':
        parser.add_argument(name, metavar=name.upper(), help='a checkpoint, or the name or file of a config')
        parser.add_argument(f'--weights-{name}', metavar='CHECKPOINT', help=f'of {name.upper()}, if that is a config')
        parser.add_argument(f'--thresholds-{name}', type=float, nargs='+', metavar='T',
                            help=f'of {name.upper()}, fine to coarse, in place of its own; -1 merges nothing')
    parser.add_argument('--min-score', type=between(0, 1), default=0.3,
                        help='of the boxes of an image that count (%(default)s)')
    parser.add_argument('--draw', type=int, default=6, metavar='N', help='images that differ most (%(default)s)')
    parser.add_argument('--out-dir', type=Path, default=Path('comparison'), help='(%(default)s)')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, default={}, metavar='KEY=VALUE',
                        help="where A's test data is: test_dataloader.dataset.data_root=PATH ...")
    args = parser.parse_args(arguments)
    if args.draw < 0:
        parser.error(f'--draw {args.draw}: wanted 0 or more')
    return args


def open_both(args: argparse.Namespace) -> list[Tested]:
    """Both models, with A's dataset and evaluator.

    Raises:
        DataError: for models of two tasks, or with other classes; or an evaluator that scores no images.
    """
    models = [load(getattr(args, name), getattr(args, f'weights_{name}'), as_published=True,
                   thresholds=getattr(args, f'thresholds_{name}')) for name in 'ab']
    if models[0].task != models[1].task:
        names = {'det': 'a detector', 'seg': 'a segmentor'}
        raise DataError(f'A is {names[models[0].task]} and B {names[models[1].task]}: give two models of one task')
    check_classes(models[1].classes, models[0].classes, 'A')
    set_options(models[0].cfg, args.cfg_options)
    first, second = (model.cfg for model in models)
    own = second.test_dataloader.dataset.pipeline
    second.test_dataloader = ConfigDict(first.test_dataloader)
    second.test_dataloader.dataset = ConfigDict(first.test_dataloader.dataset, pipeline=own)
    second.test_evaluator = first.test_evaluator
    tested = [Tested(name, model, Evaluation(model.cfg)) for name, model in zip('AB', models, strict=True)]
    scored_metric(tested[0].evaluation.evaluator)
    return tested


def test(tested: Tested, min_score: float) -> None:
    """Fill in what the model reaches."""
    def seen(sample: BaseDataElement, tokens: Tokens) -> None:
        tested.paths.append(sample.img_path)
        tested.kept.append(tokens.kept)

    tested.metrics = tested.evaluation.evaluate(tested.model, seen, lambda batches: tqdm(
        batches, desc=tested.name, unit='image', disable=None))
    tested.scores = image_scores(tested.evaluation, min_score)


def describe(first: Tested, second: Tested) -> str:
    """The metrics side by side; '-' where an evaluator gives none, as for a size without objects."""
    def text(value: float | None, form: str) -> str:
        return '-' if value is None or value < 0 or np.isnan(value) else format(value, form)

    lines = [f'{"":26}{"A":>10}{"B":>10}{"B - A":>10}']
    rows = [(name, first.metrics.get(name), second.metrics.get(name)) for name in first.metrics]
    rows.append(('mean score of an image', float(np.mean(first.scores)), float(np.mean(second.scores))))
    for name, one, other in rows:
        known = '-' not in (text(one, ''), text(other, ''))
        lines.append(f'{name:26}{text(one, "10.4g"):>10}{text(other, "10.4g"):>10}' +
                     (f'{other - one:+10.4g}' if known else f'{"-":>10}'))
    differences = np.array(second.scores) - first.scores
    lines.append(f'{len(differences)} images: B better on {(differences > 0).sum()}, A on {(differences < 0).sum()}, '
                 f'alike on {(differences == 0).sum()}')
    return '\n'.join(lines)


def draw_different(first: Tested, second: Tested, index: int, min_score: float) -> Any:
    """Truth and both predictions above, the image and both patch grids below."""
    sample = first.evaluation.batch(index)['data_samples'][0]
    results: list[Result] = [one.model.predict(first.paths[index])[0] for one in (first, second)]
    above = [Panel(results[0].draw_truth(sample), 'truth')]
    below = [Panel(results[0].pixels(), Path(first.paths[index]).name)]
    for one, result in zip((first, second), results, strict=True):
        above.append(Panel(result.draw(min_score=min_score), f'{one.name}, score {one.scores[index]:.3f}'))
        below.append(Panel(result.draw_patches(), f'{one.name}, {result.tokens.num_tokens} of '
                           f'{result.tokens.num_cells} tokens, {one.kept[index]:.1%} kept'))
    return join_panels([above, below])


def draw_kept(path: Path, first: Tested, second: Tested) -> None:
    """Each image's score against its kept tokens, and how the difference goes with them."""
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout='constrained')
    for one, colour in ((first, '#2b5fb3'), (second, '#c8502d')):
        axes[0].plot(100 * np.array(one.kept), one.scores, 'o', color=colour, alpha=0.6, ms=4, label=one.name)
    axes[0].set(xlabel='kept tokens of the image, % without padding', ylabel='score of the image', ylim=(-0.03, 1.03))
    axes[0].legend(fontsize=9)
    fewer = min((first, second), key=lambda one: np.mean(one.kept))
    axes[1].plot(100 * np.array(fewer.kept), np.array(second.scores) - first.scores, 'o', color='#5a5f68', alpha=0.6,
                 ms=4)
    axes[1].axhline(0, color='black', lw=0.8)
    axes[1].set(xlabel=f'kept tokens of the image by {fewer.name}, % without padding', ylabel='score of B - score of A')
    for axis in axes:
        axis.grid(alpha=0.3)
    save_figure(figure, path, dpi=110)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    check_folder(args.out_dir, '--out-dir')
    first, second = open_both(args)
    for tested in (first, second):
        test(tested, args.min_score)
    print(f'A: {args.a}\nB: {args.b}\n{describe(first, second)}')
    images = [dict(path=path, score_a=a, score_b=b, kept_a=kept_a, kept_b=kept_b)
              for path, a, b, kept_a, kept_b in zip(first.paths, first.scores, second.scores, first.kept, second.kept,
                                                    strict=True)]
    words = ['python tools/analysis_tools/compare_models.py', *(arguments or sys.argv[1:])]
    write_atomically(args.out_dir / 'compare.json', json.dumps(dict(
        environment=environment(words), metrics_a=first.metrics, metrics_b=second.metrics, images=images),
        indent=1) + '\n')
    draw_kept(args.out_dir / 'kept.png', first, second)
    order = sorted(range(len(images)), key=lambda index: -abs(second.scores[index] - first.scores[index]))
    for place, index in enumerate(order[:args.draw], start=1):
        path = args.out_dir / 'different' / f'{place:02}_{Path(first.paths[index]).stem}.png'
        save_picture(draw_different(first, second, index, args.min_score), path)
        print(f'{first.paths[index]}: A {first.scores[index]:.3f}, B {second.scores[index]:.3f} -> {path}')
    print(f'-> {args.out_dir}/compare.json, kept.png')


if __name__ == '__main__':
    sys.exit(run_tool(main))
