#!/usr/bin/env python
"""Find thresholds that keep a wanted share of the tokens, or at most a number of them, on your images.

    python tools/analysis_tools/calibrate_thresholds.py photos/ --size 512 --kept 0.7
    python tools/analysis_tools/calibrate_thresholds.py --config configs/apt_eva02_l_coco.py --max-tokens 6000
    python tools/analysis_tools/calibrate_thresholds.py photos/ --size 512 --thresholds 5.5 4.4

Prints how the share of kept tokens is distributed over the images, and writes a plot and a config snippet.  With
--thresholds nothing is searched.  Folders of images need torch, numpy, Pillow, matplotlib and tqdm only.
"""
import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from apt_dense.calibration.images import RESAMPLINGS, crop_square, find_images, load_image, resize_longest, to_input
from apt_dense.calibration.report import Scored, describe, draw
from apt_dense.calibration.thresholds import Family, ScoreMaps, find_thresholds, quantile_family, ratio_family
from apt_dense.calibration.token_counts import write_token_counts
from apt_dense.calibration.whole_images import split_whole
from apt_dense.command_line import at_least
from apt_dense.core.chooser import PatchChooser
from apt_dense.core.files import NotWritten, check_folder, check_target, write_atomically
from apt_dense.core.quadtree import check_thresholds
from apt_dense.core.scorers import SCORERS
from apt_dense.extras import from_extra

with from_extra('tools'):
    import numpy as np
    from tqdm import tqdm


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source_arguments(parser)
    add_threshold_arguments(parser)
    parser.add_argument('--out-dir', type=Path, default=Path('calibration'), help='plot and snippet (%(default)s)')
    parser.add_argument('--save-tokens', type=Path, metavar='FILE.json', help="write each image's number of tokens")
    parser.add_argument('--num-workers', type=at_least(0), default=len(os.sched_getaffinity(0)),
                        help='processes; 0: none but this one (default: one for each core)')
    parser.add_argument('--seed', type=at_least(0), default=0, help="of a training pipeline's random choices")
    args = parser.parse_args(arguments)
    check_args(parser, args)
    return args


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which images are scored, and how."""
    source = parser.add_argument_group('images: files and folders, or the dataset of a config')
    source.add_argument('images', nargs='*', type=Path, metavar='PATH')
    source.add_argument('--size', type=int, help='px: side of the square that the model sees')
    source.add_argument('--fit', choices=['crop', 'pad'], default='crop',
                        help='crop: shortest side to SIZE, square in the middle (segmentation; default). '
                             'pad: longest side to SIZE, padded (detection)')
    source.add_argument('--resampling', choices=RESAMPLINGS, help='pillow averages where an image shrinks, as the COCO '
                        'configs do; opencv looks at four pixels, as the ADE20K configs do, and keeps more tokens '
                        '(default: opencv with --fit crop, pillow with --fit pad)')
    source.add_argument('--scorer', choices=sorted(SCORERS), default='entropy')
    source.add_argument('--config', help='dataset, pipeline, padding, slide windows, scorer and number of scales')
    source.add_argument('--split', choices=['train', 'val', 'test'], default='test', help="the config's dataset")
    source.add_argument('--pipeline', choices=['train', 'val', 'test'], help="the config's pipeline (default: SPLIT's)")
    source.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', default=[], help='as in tools/test.py')
    source.add_argument('--num-images', type=int, help='this many, evenly picked (default: all)')


def add_threshold_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which thresholds are wanted."""
    goal = parser.add_argument_group('goal').add_mutually_exclusive_group(required=True)
    goal.add_argument('--kept', type=float, help='tokens over cells, of all images together: 0.7 saves 30 %%')
    goal.add_argument('--max-tokens', type=int, help='for the largest input: an image, or a window of slide testing')
    goal.add_argument('--thresholds', type=float, nargs='+', help='fine to coarse: report only')
    parser.add_argument('--content', action='store_true', help='--kept and --max-tokens leave out padding: tokens that '
                        'cover a pixel of the image, over cells that hold one')
    how = parser.add_argument_group('thresholds')
    how.add_argument('--num-scales', type=at_least(1), help="sizes of patches (default: the config's; 3)")
    family = how.add_mutually_exclusive_group()
    family.add_argument('--ratio', type=float, nargs='+', default=[0.8], metavar='R',
                        help='each threshold over that of the next finer scale, one or NUM_SCALES - 2 (default 0.8)')
    family.add_argument('--quantile', action='store_true',
                        help="one quantile of each scale's scores; never above the next finer threshold")


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what does not go together, and fill in the defaults that hang on other options."""
    if bool(args.images) == bool(args.config):
        parser.error('give images, or --config')
    if args.images and not args.size:
        parser.error('images need a --size')
    unused = {'images': ('split', 'pipeline', 'cfg_options', 'seed'), 'config': ('size', 'fit', 'resampling', 'scorer'),
              'thresholds': ('ratio', 'quantile', 'content')}
    for given, names in unused.items():
        for name in names if getattr(args, given) else ():
            if getattr(args, name) != parser.get_default(name):
                what = {'images': 'image files', 'config': '--config, which has its own',
                        'thresholds': '--thresholds, which looks for none'}[given]
                parser.error(f'--{name.replace("_", "-")} has no meaning with {what}')
    if args.images and args.resampling is None:
        args.resampling = 'opencv' if args.fit == 'crop' else 'pillow'
    if args.kept is not None and not 0 < args.kept <= 1:
        parser.error(f'--kept {args.kept:g} is no share of the tokens: give a number in (0, 1]')
    if args.max_tokens is not None and args.max_tokens < 1:
        parser.error(f'--max-tokens {args.max_tokens}: wanted 1 or more')
    if args.num_images is not None and args.num_images < 1:
        parser.error(f'--num-images {args.num_images}: wanted 1 or more')
    if args.save_tokens and args.num_images:
        parser.error('--save-tokens needs every image: leave out --num-images')
    if args.thresholds and args.num_scales not in (None, len(args.thresholds) + 1):
        parser.error(f'--num-scales {args.num_scales} has {args.num_scales - 1} thresholds, got {len(args.thresholds)}')
    if args.thresholds:
        args.num_scales = len(args.thresholds) + 1
    largest = 16 << (args.num_scales or 3) - 1
    if args.size is not None and (args.size < 1 or args.size % largest):
        parser.error(f'--size {args.size} is not a multiple of the largest patch, {largest} px: use '
                     f'{max(-(-args.size // largest), 1) * largest}, or fewer --num-scales')


class Photographs:
    """Score maps of image files at one size; what ``apt_dense.mm.data.inputs.ConfigInputs`` is for configs."""

    def __init__(self, files: list[Path], size: int, fit: str, resampling: str, scorer: str, num_scales: int):
        self.chooser = PatchChooser(num_scales, (0.0,) * (num_scales - 1), scorer)
        self._paths, self._size, self._fit, self._resampling = files, size, fit, resampling
        self.settings = dict(size=size, fit=fit, resampling=resampling, scorer=scorer, num_scales=num_scales,
                             patch_size=self.chooser.patch_size)

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> str:
        return str(self._paths[index])

    def score(self, index: int) -> list[tuple[list[Tensor], tuple[int, int]]]:
        resize = crop_square if self._fit == 'crop' else resize_longest
        image = resize(load_image(self._paths[index]), self._size, self._resampling)
        maps = [scores[0] for scores in self.chooser.scores(to_input(image, self._size))]
        return [(maps, tuple(-(-side // self.chooser.patch_size) for side in (image.height, image.width)))]


def open_source(args: argparse.Namespace) -> tuple[Any, list[str]]:
    """The images that the command names, ``Photographs`` or ``ConfigInputs``; what is told of those that are damaged.

    The files of a dataset are left to ``apt-dense check``.
    """
    if args.images:
        files = find_images(args.images)
        files, errors = split_whole(files[index] for index in pick(len(files), args.num_images))
        return Photographs(files, args.size, args.fit, args.resampling, args.scorer, args.num_scales or 3), [
            tell(error) for error in errors]
    with from_extra('mm'):
        import cv2

    from apt_dense.mm import compat
    from apt_dense.mm.cli import launch
    from apt_dense.mm.cli.dataset_files import check_dataset_files
    from apt_dense.mm.data.inputs import ConfigInputs
    from apt_dense.mm.preflight.options import OptionsAction
    compat.filter_library_warnings()
    cv2.setNumThreads(0)  # the workers are the parallelism
    options = argparse.ArgumentParser()
    options.add_argument('--cfg-options', nargs='+', action=OptionsAction)
    namespace = options.parse_args(['--cfg-options', *args.cfg_options] if args.cfg_options else [])
    namespace.__dict__.update(config=args.config, launcher='none', work_dir=None, local_rank=0)
    cfg = launch.load_config(namespace)
    cfg.pop(f'{args.split}_evaluator', None)  # nothing is evaluated: its annotations need not be there
    check_dataset_files(cfg, args.split)
    return ConfigInputs(cfg, args.split, args.pipeline, args.num_scales, args.seed), []


def pick(count: int, wanted: int | None) -> list[int]:
    """``wanted`` indexes of ``count``, evenly over all; all for None."""
    wanted = min(wanted or count, count)
    return [position * count // wanted for position in range(wanted)]


def tell(error: object) -> str:
    """Say at once what is left out, and why."""
    tqdm.write(f'calibrate_thresholds: {error}', file=sys.stderr)
    return str(error)


class _Scores(torch.utils.data.Dataset):
    """Image -> its path and maps as arrays, which no shared memory is used up for; or its path and why not."""

    def __init__(self, source: Any, indexes: list[int]):
        self.source, self.indexes = source, indexes

    def __len__(self) -> int:
        return len(self.indexes)

    def __getitem__(self, position: int) -> tuple[str, list[tuple[list[np.ndarray], tuple[int, int]]], str]:
        index = self.indexes[position]
        try:
            maps = [([scores.numpy() for scores in one], content) for one, content in self.source.score(index)]
        except ValueError as error:
            return self.source.path(index), [], str(error)
        return self.source.path(index), maps, ''


def _start_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends its workers


def score_images(source: Any, num_images: int | None, num_workers: int) -> Scored:
    """Score the images, in the source's order whatever the number of workers, and forget them one by one."""
    indexes = pick(len(source), num_images)
    num_workers = min(num_workers, len(indexes))
    loader = DataLoader(_Scores(source, indexes), collate_fn=lambda batch: batch[0], worker_init_fn=_start_worker,
                        num_workers=num_workers, multiprocessing_context='fork' if num_workers else None)
    maps, owners, paths, errors = ScoreMaps(source.chooser.num_scales, source.chooser.max_tokens), [], [], []
    for path, inputs, error in tqdm(loader, unit='image', desc='scoring'):
        if error:
            errors.append(tell(error))
            continue
        for one, content in inputs:
            maps.add([torch.from_numpy(scores) for scores in one], content)
        owners += [len(paths)] * len(inputs)
        paths.append(path)
    return Scored(maps, torch.tensor(owners, dtype=torch.int64), paths, errors)


def choose(args: argparse.Namespace, maps: ScoreMaps) -> tuple[tuple[float, ...], Family]:
    """The thresholds, found or given, and the family that they belong to."""
    if args.thresholds:
        given = tuple(args.thresholds)
        return given, Family(lambda factor: tuple(factor * threshold for threshold in given), 2.0, 'given')
    family = quantile_family(maps) if args.quantile else ratio_family(maps, args.ratio)
    if args.kept is not None:
        cells = (maps.num_content_cells if args.content else maps.num_cells).sum().item()
        return find_thresholds(family, lambda found: maps.count_tokens(found, args.content).sum().item() / cells,
                               args.kept), family
    return find_thresholds(family, lambda found: maps.count_tokens(found, args.content).sum(1).max().item(),
                           args.max_tokens), family


def snippet(args: argparse.Namespace, source: Any, family: Family, thresholds: tuple[float, ...], table: str) -> str:
    """A config with the thresholds, and how they came about."""
    where = (f'--config {args.config} --split {args.split} --pipeline {args.pipeline or args.split}' if args.config else
             f'{args.images[0]}{" ..." * (len(args.images) > 1)} --size {args.size} --fit {args.fit} '
             f'--resampling {args.resampling}')
    goal = (f', --kept {args.kept:g}' if args.kept is not None else
            f', --max-tokens {args.max_tokens}' if args.max_tokens is not None else '') + ' --content' * args.content
    lines = [f'tools/analysis_tools/calibrate_thresholds.py {where}', f'thresholds: {family.name}{goal}',
             *table.split('\n')]
    return '\n'.join(f'# {line}'.rstrip() for line in lines) + (
        f'\nmodel = dict(backbone=dict(num_scales={source.chooser.num_scales}, thresholds={thresholds}))\n')


def run(args: argparse.Namespace) -> int:
    check_folder(args.out_dir, '--out-dir')
    if args.save_tokens:
        check_target(args.save_tokens, '--save-tokens')
    if args.thresholds:
        check_thresholds(args.thresholds, args.num_scales)
    source, damaged = open_source(args)
    scored = score_images(source, args.num_images, args.num_workers)
    left_out = [*damaged, *scored.errors]
    thresholds, family = choose(args, scored.maps)
    table = describe(source.chooser, scored, thresholds)
    if args.images:
        print(f'{args.fit} to {args.size} px, resampling by {args.resampling}')
    print(table)
    draw(args.out_dir / 'thresholds.png', scored, thresholds, family, args.kept, args.content)
    write_atomically(args.out_dir / 'thresholds.py', snippet(args, source, family, thresholds, table))
    print(f'-> {args.out_dir / "thresholds.png"}, {args.out_dir / "thresholds.py"}')
    if args.save_tokens:
        tokens = scored.per_image(scored.maps.count_tokens(thresholds)).sum(1).tolist()
        write_token_counts(args.save_tokens, {**source.settings, 'thresholds': thresholds},
                           dict(zip(scored.paths, tokens, strict=True)))
        print(f'-> {args.save_tokens}')
    if left_out:
        print(f'calibrate_thresholds: {len(left_out)} images left out, see above', file=sys.stderr)
    return 1 if left_out else 0


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    try:
        return run(args)
    except (ValueError, NotWritten) as error:
        print(f'calibrate_thresholds: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('calibrate_thresholds: interrupted, nothing was written', file=sys.stderr)
        return 130


if __name__ == '__main__':
    sys.exit(main())
