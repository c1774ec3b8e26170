#!/usr/bin/env python
"""Draw the patches that APT chooses over images, and count the tokens.

    python tools/analysis_tools/visualize_patches.py photo.jpg other.png --out-dir patches
    python tools/analysis_tools/visualize_patches.py photo.jpg --config configs/apt_eva02_ti_demo_det.py

With --config an image goes through the config's own test pipeline, padding and slide windows: what is drawn and counted
is what the model would see.  Without it, torch, numpy and Pillow are enough.
"""
import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apt_dense.calibration.images import RESAMPLINGS, load_image, resize_longest, to_input
from apt_dense.core.chooser import PatchChooser
from apt_dense.core.layout import TokenLayout
from apt_dense.core.scorers import SCORERS
from apt_dense.drawing.patches import draw_patches
from apt_dense.extras import from_extra

with from_extra('images'):
    import numpy as np
    from PIL import Image

GAP_PX = 8  # between the windows of slide inference


@dataclass(frozen=True)
class Chosen:
    """An image as the model gets it, or one window of it, and its patches.

    Attributes:
        image: (H, W, 3), RGB, without padding.
        layout: padding included.
        corner_px: row and column of the window in the image.
    """
    image: np.ndarray
    layout: TokenLayout
    corner_px: tuple[int, int] = (0, 0)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', nargs='+', type=Path, metavar='IMAGE')
    parser.add_argument('--config', help='pipeline, padding, windows, thresholds and scorer of this config')
    parser.add_argument('--thresholds', type=float, nargs='*',
                        help="fine to coarse (default: the config's, or 2 2 0.3)")
    parser.add_argument('--scorer', choices=sorted(SCORERS), help="default: the config's, or entropy")
    bare = parser.add_argument_group('without --config')
    bare.add_argument('--img-size', type=int,
                      help='resize the longest side to this and pad to a square; 0: neither (default 1536)')
    bare.add_argument('--resampling', choices=RESAMPLINGS, help='pillow averages where an image shrinks, as the COCO '
                      'configs do (default); opencv looks at four pixels, as the ADE20K configs do')
    bare.add_argument('--patch-size', type=int, help='base patch in pixels (default 16)')
    parser.add_argument('--out-dir', type=Path, default=Path('patches'))
    args = parser.parse_args(arguments)
    if args.config:
        for name in ('img_size', 'resampling', 'patch_size'):
            if getattr(args, name) is not None:
                parser.error(f'--{name.replace("_", "-")} has no meaning with --config, which has its own')
        return args
    settings = dict(img_size=1536, resampling='pillow', patch_size=16, thresholds=(2, 2, 0.3), scorer='entropy')
    for name, value in settings.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    root_px = args.patch_size * 2**len(args.thresholds)
    if args.img_size % root_px:
        parser.error(f'--img-size {args.img_size} is not a multiple of the largest patch, {root_px} px: use '
                     f'{-(-args.img_size // root_px) * root_px}, or 0 to keep the size')
    return args


def bare_chooser(args: argparse.Namespace) -> tuple[PatchChooser, Callable[[Path], list[Chosen]]]:
    """The chooser of the options, and what it chooses for a file."""
    chooser = PatchChooser(len(args.thresholds) + 1, args.thresholds, args.scorer, patch_size=args.patch_size)

    def choose(path: Path) -> list[Chosen]:
        image = load_image(path)
        if args.img_size:
            image = resize_longest(image, args.img_size, args.resampling)
        x = to_input(image, args.img_size or max(image.size))
        if not args.img_size:  # padded to whole patches only, not to a square
            x = x[:, :, :image.height, :image.width]
        return [Chosen(np.asarray(image), chooser.layout(chooser.pad(x)))]

    return chooser, choose


def config_chooser(args: argparse.Namespace) -> tuple[PatchChooser, Callable[[Path], list[Chosen]]]:
    """The chooser of the config, and what it chooses for the inputs that the config makes of a file."""
    with from_extra('mm'):
        from mmengine.config import Config

        from apt_dense.mm.data.inputs import ConfigInputs
    cfg = Config.fromfile(args.config)
    if args.thresholds is not None:
        cfg.model.backbone.update(thresholds=args.thresholds, num_scales=len(args.thresholds) + 1)
    if args.scorer:
        cfg.model.backbone.scorer = args.scorer
    inputs = ConfigInputs(cfg, images=args.images)
    chooser = inputs.chooser

    def choose(path: Path) -> list[Chosen]:
        result = []
        for one in inputs.inputs(args.images.index(path)):
            height_px, width_px = one.content_px
            image = chooser.restore(one.x)[0, :, :height_px, :width_px].permute(1, 2, 0).round().clamp(0, 255)
            result.append(Chosen(image.byte().numpy(), chooser.layout(one.x), one.corner_px))
        return result

    return chooser, choose


def draw_windows(windows: list[Chosen], patch_size: int) -> Image.Image:
    """All windows of an image, side by side in their rows and columns."""
    pictures = [draw_patches(window.image, window.layout, patch_size) for window in windows]
    rows, cols = (sorted({window.corner_px[axis] for window in windows}) for axis in (0, 1))
    width, height = (max(picture.size[axis] for picture in pictures) + GAP_PX for axis in (0, 1))
    canvas = Image.new('RGB', (len(cols) * width - GAP_PX, len(rows) * height - GAP_PX), 'white')
    for window, picture in zip(windows, pictures, strict=True):
        y, x = window.corner_px
        canvas.paste(picture, (cols.index(x) * width, rows.index(y) * height))
    return canvas


def describe(windows: list[Chosen], patch_size: int) -> str:
    """One line: tokens in all, kept-token fractions with padding and without, tokens of each size."""
    layouts = [window.layout for window in windows]
    sizes = ', '.join(f'{sum(counts)} of {patch_size << scale} px' for scale, counts in
                      enumerate(zip(*(layout.scale_counts for layout in layouts), strict=True)))
    tokens, cells = sum(sum(layout.scale_counts) for layout in layouts), sum(layout.num_cells for layout in layouts)
    content = [tuple(-(-side // patch_size) for side in window.image.shape[:2]) for window in windows]
    content_tokens = sum(int(layout.covers_content([limits]).sum())
                         for layout, limits in zip(layouts, content, strict=True))
    content_cells = sum(rows * cols for rows, cols in content)
    inputs = '' if len(windows) == 1 else f' in {len(windows)} windows'
    return (f'{tokens} tokens of {cells} cells{inputs}, padding included ({tokens / cells:.1%} kept): {sizes}; without '
            f'padding {content_tokens} of {content_cells} ({content_tokens / content_cells:.1%} kept)')


def output_path(out_dir: Path, image: Path, taken: set[Path]) -> Path:
    """out_dir/NAME_patches.png, numbered where two images share a name."""
    path, number = out_dir / f'{image.stem}_patches.png', 2
    while path in taken:
        path, number = out_dir / f'{image.stem}_patches_{number}.png', number + 1
    taken.add(path)
    return path


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    chooser, choose = config_chooser(args) if args.config else bare_chooser(args)
    how = f'the test pipeline of {args.config}' if args.config else (
        f'longest side to {args.img_size} px by {args.resampling}' if args.img_size else 'size as it is')
    print(f'{how}; thresholds {" ".join(f"{threshold:g}" for threshold in chooser.thresholds)}')
    taken: set[Path] = set()
    failed = 0
    for path in args.images:
        try:
            windows = choose(path)
        except ValueError as error:
            print(f'visualize_patches: {error}', file=sys.stderr)
            failed += 1
            continue
        args.out_dir.mkdir(parents=True, exist_ok=True)
        target = output_path(args.out_dir, path, taken)
        draw_windows(windows, chooser.patch_size).save(target)
        print(f'{path}: {describe(windows, chooser.patch_size)} -> {target}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
