#!/usr/bin/env python
"""Simulate how long ranks wait for the busiest one, with random batches and with token-balanced ones.

    python tools/analysis_tools/simulate_token_balance.py photos/ --config configs/apt_eva02_l_ade20k_512.py
    python tools/analysis_tools/simulate_token_balance.py --token-counts tokens.json

A rank's time is taken to grow with its number of tokens, and a step lasts as long as its busiest rank: the idle share
is the mean over the steps of 1 - mean / max of the ranks' tokens.  Prints a table and draws it.

From photographs, a dataset of random crops is made.  Each crop is then resized at random, as in training, several
times: half of its draws give the expected number that the batches are balanced by, the other half are trained with.
With --token-counts (of calibrate_thresholds.py --save-tokens) the numbers are those of your dataset, and are taken to
be the same in each epoch.
"""
import argparse
import sys
from itertools import islice
from pathlib import Path

from apt_dense.calibration.images import RESAMPLINGS, load_image, resize, to_input
from apt_dense.calibration.token_counts import load_token_counts
from apt_dense.calibration.whole_images import find_whole_images
from apt_dense.command_line import at_least, between
from apt_dense.core.files import NotWritten
from apt_dense.drawing.saving import check_figure_target, save_figure
from apt_dense.extras import from_extra
from apt_dense.mm.data.samplers import balanced_steps

with from_extra('tools'):
    import numpy as np
    from PIL import Image
    from tqdm import tqdm


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', nargs='*', type=Path, metavar='PATH', help='photographs: files and folders')
    parser.add_argument('--token-counts', type=Path, metavar='FILE.json', help='in place of photographs')
    parser.add_argument('--config', help='thresholds, number of scales and scorer (with photographs)')
    parser.add_argument('--size', type=at_least(1), default=512,
                        help='px: side of the square that the model sees (512)')
    parser.add_argument('--resampling', choices=RESAMPLINGS, help="how photographs shrink (default: the config's way)")
    parser.add_argument('--ratio-range', type=between(0), nargs=2, default=(0.5, 2.0), metavar=('LOW', 'HIGH'),
                        help='of the longest side to SIZE, drawn at random (0.5 2.0, segmentation; 0.1 2.0: LSJ)')
    parser.add_argument('--num-crops', type=at_least(1), default=500, help='images of the made dataset (500)')
    parser.add_argument('--num-draws', type=int, default=8, help='of each image, at least 2 (8)')
    parser.add_argument('--ranks', type=at_least(1), nargs='+', default=[2, 4, 8, 16, 32, 64])
    parser.add_argument('--batch-size', type=at_least(1), nargs='+', default=[1, 2, 4], help='images a rank (1 2 4)')
    parser.add_argument('--pool-steps', type=at_least(1), default=16, help='of TokenBalancedBatchSampler (16)')
    parser.add_argument('--num-steps', type=at_least(1), default=400, help='simulated (400)')
    parser.add_argument('--seed', type=at_least(0), default=0)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/token_balance.png'), help='the plot')
    args = parser.parse_args(arguments)
    if bool(args.images) == bool(args.token_counts):
        parser.error('give photographs, or --token-counts')
    if args.images and not args.config:
        parser.error('photographs need a --config, for its thresholds')
    if args.ratio_range[0] > args.ratio_range[1]:
        parser.error(f'--ratio-range {args.ratio_range[0]:g} {args.ratio_range[1]:g}: wanted the smaller number first')
    if args.num_draws < 2:
        parser.error(f'--num-draws {args.num_draws}: wanted 2 or more, half of them for the expectation')
    return args


def random_crop(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random part of a photograph, 40 % to 100 % of each side."""
    width, height = (max(1, int(side * rng.uniform(0.4, 1.0))) for side in photo.size)
    left, top = rng.integers(photo.width - width + 1), rng.integers(photo.height - height + 1)
    return photo.crop((left, top, left + width, top + height))


def augment(image: Image.Image, size: int, ratio: float, resampling: str, rng: np.random.Generator) -> Image.Image:
    """Longest side to size * ratio, then a random crop of at most size x size: random resizing as in training."""
    factor = size * ratio / max(image.size)
    image = resize(image, tuple(max(1, round(side * factor)) for side in image.size), resampling)
    left, top = (rng.integers(max(side - size, 0) + 1) for side in image.size)
    return image.crop((left, top, min(left + size, image.width), min(top + size, image.height)))


def count_draws(args: argparse.Namespace) -> np.ndarray:
    """(images, draws) tokens of random crops of the photographs, padded to the square."""
    with from_extra('mm'):
        import apt_dense.mm  # noqa: F401  registers the backbone
        from apt_dense.mm.cli.config_files import read_config
        from apt_dense.mm.data.inputs import chooser_of, resampling_of
    cfg = read_config(args.config)
    chooser, resampling = chooser_of(cfg), args.resampling or resampling_of(cfg)
    print(f'resampling by {resampling}')
    rng = np.random.default_rng(args.seed)
    photos = [load_image(path) for path in find_whole_images(args.images)]
    counts = np.empty((args.num_crops, args.num_draws))
    for index in tqdm(range(args.num_crops), unit='image', desc='scoring'):
        crop = random_crop(photos[rng.integers(len(photos))], rng)
        for draw in range(args.num_draws):
            image = augment(crop, args.size, rng.uniform(*args.ratio_range), resampling, rng)
            layout = chooser.layout(chooser.pad(to_input(image, args.size, chooser.img_mean, chooser.img_std)))
            counts[index, draw] = sum(layout.scale_counts)
    return counts


def idle_share(steps: np.ndarray, tokens: np.ndarray, rng: np.random.Generator) -> float:
    """Steps (n, ranks, batch) of images and their draws (images, draws) -> the idle share, a draw a use."""
    sums = tokens[steps, rng.integers(tokens.shape[1], size=steps.shape)].sum(2)
    return float((1 - sums.mean(1) / sums.max(1)).mean())


def simulate(args: argparse.Namespace, expected: np.ndarray, draws: np.ndarray) -> list[tuple[int, int, float, float]]:
    """(batch size, ranks, idle share with random batches, with balanced ones)."""
    rows = []
    for batch_size in args.batch_size:
        for ranks in args.ranks:
            rng = np.random.default_rng((args.seed, ranks, batch_size))
            needed = args.num_steps * ranks * batch_size
            epochs = [rng.permutation(len(expected)) for _ in range(-(-needed // len(expected)))]
            plain = np.concatenate(epochs)[:needed].reshape(-1, ranks, batch_size)
            stream = balanced_steps(expected, ranks, batch_size, args.pool_steps, args.seed)
            balanced = np.array(list(islice(stream, args.num_steps)))
            rows.append((batch_size, ranks, *(idle_share(steps, draws, rng) for steps in (plain, balanced))))
    return rows


def draw(path: Path, rows: list[tuple[int, int, float, float]], title: str) -> None:
    """Idle share over the number of ranks: random batches dashed, balanced ones solid."""
    with from_extra('tools'):
        import matplotlib
        from matplotlib import pyplot
    matplotlib.use('Agg')
    figure, axes = pyplot.subplots(figsize=(7, 4.4), layout='constrained')
    for number, batch_size in enumerate(dict.fromkeys(row[0] for row in rows)):
        ranks, plain, balanced = np.array([row[1:] for row in rows if row[0] == batch_size]).T
        axes.plot(ranks, 100 * plain, 'o--', color=f'C{number}', label=f'{batch_size} a rank, random')
        axes.plot(ranks, 100 * balanced, 'o-', color=f'C{number}', label=f'{batch_size} a rank, balanced')
    axes.set_xscale('log', base=2)
    axes.set(xticks=ranks, xticklabels=[f'{rank:.0f}' for rank in ranks], xlabel='ranks', title=title,
             ylabel='time that a rank waits, %')
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    save_figure(figure, path, dpi=110)
    pyplot.close(figure)


def run(args: argparse.Namespace) -> None:
    if args.token_counts:
        draws = np.array(list(load_token_counts(args.token_counts)[1].values()), dtype=np.float64)[:, None]
        expected, title = draws[:, 0], str(args.token_counts)
    else:
        counts = count_draws(args)
        half = args.num_draws // 2
        expected, draws = counts[:, :half].mean(1), counts[:, half:]
        low, high = args.ratio_range
        title = f'{args.num_crops} random crops at {args.size} px, ratio {low:g} to {high:g}'
    mean = draws.mean()
    print(f'{title}: {mean:.0f} tokens on average, standard deviation {100 * draws.mean(1).std() / mean:.0f} % between '
          f'images, {100 * draws.std(1).mean() / mean:.0f} % between draws of one')
    rows = simulate(args, expected, draws)
    print(f'idle share in %, {args.num_steps} steps\n{"images a rank":>14}{"ranks":>7}{"random":>9}{"balanced":>10}')
    for batch_size, ranks, plain, balanced in rows:
        print(f'{batch_size:14}{ranks:7}{100 * plain:9.1f}{100 * balanced:10.1f}')
    draw(args.out, rows, title)
    print(f'-> {args.out}')


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    try:
        check_figure_target(args.out, '--out')
        run(args)
    except (ValueError, NotWritten) as error:
        print(f'simulate_token_balance: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
