#!/usr/bin/env python
"""Draw the patches that APT chooses over images, and count the tokens.

    python tools/analysis_tools/visualize_patches.py photo.jpg photos/ film.mp4 --out-dir patches
    python tools/analysis_tools/visualize_patches.py photo.jpg --config configs/apt_eva02_ti_demo_det.py
    python tools/analysis_tools/visualize_patches.py photo.jpg --thresholds 2 2 0.3 --thresholds 5 5 3 --heat-maps
    python tools/analysis_tools/visualize_patches.py photo.jpg --scorer entropy laplacian_max --kept 0.8 0.5

Several thresholds, shares (--kept) and scorers are drawn side by side in one picture, a row for each scorer; padding is
hatched.  --heat-maps adds what the scorer says of each patch size.  For --kept, thresholds are found on all that is
given, 200 pictures at most; one threshold for all patch sizes.

With --config an image goes through the config's own test pipeline, padding and slide windows: what is drawn and counted
is what the model would see.  Without it, torch, numpy and Pillow are enough; videos need the extra mm.
"""
import argparse
import copy
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from apt_dense.calibration.images import (
    RESAMPLINGS,
    VIDEO_SUFFIXES,
    load_image,
    resize_longest,
    to_input,
)
from apt_dense.calibration.inputs import BackboneInput
from apt_dense.calibration.shares import thresholds_for
from apt_dense.calibration.thresholds import ScoreMaps
from apt_dense.core.chooser import PatchChooser
from apt_dense.core.files import NotWritten, check_folder
from apt_dense.core.scorers import SCORERS
from apt_dense.drawing.saving import save_picture
from apt_dense.drawing.sources import find_inputs, read_all
from apt_dense.drawing.variants import Variant, draw_variants
from apt_dense.extras import from_extra

with from_extra('images'):
    import numpy as np
    from PIL import Image

MAX_SCORED = 200  # pictures that thresholds are found on
DEFAULTS = dict(img_size=1536, resampling='pillow', patch_size=16, scorer=['entropy'])
DEFAULT_THRESHOLDS = (2.0, 2.0, 0.3)


Prepare = Callable[[Path | Image.Image], list[BackboneInput]]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', nargs='+', type=Path, metavar='INPUT',
                        help='images, folders with those below them, videos')
    parser.add_argument('--config', help='pipeline, padding, windows, thresholds and scorer of this config, a file or '
                        'the name of one of this project')
    parser.add_argument('--thresholds', type=float, nargs='*', action='append',
                        help="fine to coarse; may be given several times (default: the config's, or 2 2 0.3)")
    parser.add_argument('--kept', type=float, nargs='+', default=[],
                        help='shares of the tokens to keep, padding left out')
    parser.add_argument('--scorer', choices=sorted(SCORERS), nargs='+', help="default: the config's, or entropy")
    parser.add_argument('--heat-maps', action='store_true', help='draw the scores of each patch size')
    bare = parser.add_argument_group('without --config')
    bare.add_argument('--img-size', type=int,
                      help='resize the longest side to this and pad to a square; 0: neither (default 1536)')
    bare.add_argument('--resampling', choices=RESAMPLINGS, help='pillow averages where an image shrinks, as the COCO '
                      'configs do (default); opencv looks at four pixels, as the ADE20K configs do')
    bare.add_argument('--patch-size', type=int, help='base patch in pixels (default 16)')
    parser.add_argument('--out-dir', type=Path, default=Path('patches'))
    args = parser.parse_args(arguments)
    check_args(parser, args)
    return args


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what does not go together, and fill in the defaults."""
    for name in ('img_size', 'resampling', 'patch_size'):
        if args.config and getattr(args, name) is not None:
            parser.error(f'--{name.replace("_", "-")} has no meaning with --config, which has its own')
    for kept in args.kept:
        if not 0 < kept <= 1:
            parser.error(f'--kept {kept:g} is no share of the tokens: give numbers in (0, 1]')
    counts = {len(values) for values in args.thresholds or ()}
    if len(counts) > 1:
        parser.error(f'--thresholds of {" and ".join(map(str, sorted(counts)))} numbers: give as many each time, one '
                     'less than there are sizes of patches')
    if args.config:
        return
    for name, value in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.patch_size < 1 or args.img_size < 0:
        parser.error(f'--patch-size {args.patch_size} --img-size {args.img_size}: wanted pixels')
    root_px = args.patch_size * 2**(counts.pop() if counts else len(DEFAULT_THRESHOLDS))
    if args.img_size % root_px:
        parser.error(f'--img-size {args.img_size} is not a multiple of the largest patch, {root_px} px: use '
                     f'{-(-args.img_size // root_px) * root_px}, or 0 to keep the size')


def bare_source(args: argparse.Namespace) -> tuple[list[Variant], Prepare]:
    """The choosers of the options, one for each scorer, and what they are given of an image."""
    thresholds = args.thresholds[0] if args.thresholds else DEFAULT_THRESHOLDS
    choosers = [(scorer, PatchChooser(len(thresholds) + 1, thresholds, scorer, patch_size=args.patch_size))
                for scorer in args.scorer]

    def prepare(image: Path | Image.Image) -> list[BackboneInput]:
        image = image if isinstance(image, Image.Image) else load_image(image)
        if args.img_size:
            image = resize_longest(image, args.img_size, args.resampling)
        x = to_input(image, args.img_size or max(image.size))
        if not args.img_size:  # padded to whole patches only, not to a square
            x = x[:, :, :image.height, :image.width]
        return [BackboneInput(choosers[0][1].pad(x), (image.height, image.width))]

    return choosers, prepare


def config_source(args: argparse.Namespace) -> tuple[list[Variant], Prepare]:
    """The choosers of the config, one for each scorer, and the inputs that the config makes of an image."""
    with from_extra('mm'):
        import apt_dense.mm  # noqa: F401
        from apt_dense.mm.cli.config_files import read_config
        from apt_dense.mm.data.inputs import ConfigInputs, chooser_of
    cfg = read_config(args.config)
    chooser_of(cfg)  # there is one
    backbone = cfg.model.backbone
    if args.thresholds is not None:
        backbone.update(thresholds=args.thresholds[0], num_scales=len(args.thresholds[0]) + 1)
    scorers = args.scorer or [backbone.get('scorer', 'entropy')]
    backbone.scorer = scorers[0]
    inputs = ConfigInputs(cfg, images=[])
    choosers = []
    for scorer in scorers:
        backbone.scorer = scorer
        choosers.append((scorer, chooser_of(cfg)))

    def prepare(image: Path | Image.Image) -> list[BackboneInput]:
        return inputs.inputs_of(image if isinstance(image, Path) else np.asarray(image))

    return choosers, prepare


def find_shares(args: argparse.Namespace, chooser: PatchChooser, prepare: Prepare) -> list[tuple[float, ...]]:
    """The thresholds of --kept.

    Raises:
        ValueError: for a share that is out of reach, or if nothing can be read.
    """
    maps = ScoreMaps(chooser.num_scales)
    for _, image in itertools.islice(read_all(args.images, lambda error: None), MAX_SCORED):
        try:
            windows = prepare(image)
        except ValueError:  # said when it is drawn
            continue
        for window in windows:
            maps.add([scores[0] for scores in chooser.scores(window.x)], window.content_cells(chooser.patch_size))
    if not maps.num_inputs:
        raise ValueError('--kept: nothing of what is given can be read as a picture')
    return [thresholds_for(maps, kept, ()) for kept in args.kept]


def find_variants(args: argparse.Namespace, choosers: Sequence[Variant],
                  prepare: Prepare) -> list[tuple[str, list[Variant]]]:
    """Each scorer with a chooser for each of its thresholds, those of --kept last."""
    variants = []
    for scorer, chooser in choosers:
        found = [] if args.kept and not args.thresholds else args.thresholds or [chooser.thresholds]
        labelled = [('thresholds ' + ' '.join(f'{value:g}' for value in values), values) for values in found]
        if args.kept:
            labelled += [(f'kept={kept:g}, thresholds ' + ' '.join(f'{value:g}' for value in values), values)
                         for kept, values in zip(args.kept, find_shares(args, chooser, prepare), strict=True)]
        row = []
        for label, values in labelled:
            row.append((label, copy.copy(chooser)))
            row[-1][1].thresholds = values
        variants.append((scorer, row))
    return variants


class Writer:
    """Writes the pictures, NAME_patches.png or NAME_patches.mp4, numbered where two inputs share a name."""

    def __init__(self, out_dir: Path):
        self.out_dir = out_dir
        self._taken: set[Path] = set()
        self._video, self._writer, self._path = '', None, Path()

    def write(self, name: str, picture: Image.Image) -> Path:
        """Write a picture, or a frame of a video; return where it stands."""
        video, _, frame = name.rpartition('#')
        if not (video and frame.isdecimal() and Path(video).suffix.lower() in VIDEO_SUFFIXES):
            path = self._free(Path(name).stem, '.png')
            save_picture(picture, path)
            return path
        if video != self._video:
            from apt_dense.mm.inference.writing import VideoFile
            self.close()
            self._video, self._path = video, self._free(Path(video).stem, '.mp4')
            self._writer, self._size = VideoFile(self._path, video, picture.size), picture.size
        if picture.size != self._size:  # a label of another length has broken in another way
            fitted = Image.new('RGB', self._size, 'white')
            fitted.paste(picture, (0, self._size[1] - picture.height))
            picture = fitted
        self._writer.write(np.asarray(picture))
        return self._path

    def close(self) -> None:
        """Finish the video."""
        ended, self._video, self._writer = self._writer, '', None
        if ended is not None:
            ended.close()

    def discard(self) -> None:
        """Give up a video that is not finished."""
        if self._writer is not None:
            self._writer.discard()

    def _free(self, stem: str, suffix: str) -> Path:
        path, number = self.out_dir / f'{stem}_patches{suffix}', 2
        while path in self._taken:
            path, number = self.out_dir / f'{stem}_patches_{number}{suffix}', number + 1
        self._taken.add(path)
        return path


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    failed = []

    def fail(error: ValueError) -> None:
        print(f'visualize_patches: {error}', file=sys.stderr)
        failed.append(error)

    try:
        check_folder(args.out_dir, '--out-dir')
        args.images = find_inputs(args.images, fail)
        if not args.images:
            return 2
        choosers, prepare = config_source(args) if args.config else bare_source(args)
        variants = find_variants(args, choosers, prepare)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    how = f'the test pipeline of {args.config}' if args.config else (
        f'longest side to {args.img_size} px by {args.resampling}' if args.img_size else 'size as it is')
    print(f'{how}; ' + '; '.join(f'{scorer}, {label}' for scorer, row in variants for label, _ in row))
    writer, drawn = Writer(args.out_dir), 0
    try:
        for name, image in read_all(args.images, fail):
            try:
                picture, lines = draw_variants(variants, prepare(image), args.heat_maps)
            except ValueError as error:
                fail(error)
                continue
            target = writer.write(name, picture)
            drawn += 1
            print('\n'.join(f'{name}: {line} -> {target}' for line in lines))
        writer.close()
    except NotWritten as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    finally:
        writer.discard()
    return 0 if not failed else 1 if drawn else 2


if __name__ == '__main__':
    sys.exit(main())
