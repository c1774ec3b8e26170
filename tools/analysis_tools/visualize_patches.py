#!/usr/bin/env python
"""Draw the patches that APT chooses over images, and count the tokens.

    python tools/analysis_tools/visualize_patches.py photo.jpg other.png --out-dir patches
    python tools/analysis_tools/visualize_patches.py photo.jpg --config configs/apt_eva02_ti_demo_det.py

Needs torch, numpy and Pillow; mmengine only with --config.
"""
import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from apt_dense.core.importance import SCORERS, get_scorer
from apt_dense.core.layout import TokenLayout
from apt_dense.core.quadtree import select_scales
from apt_dense.images import crop_square, load_image, resize_longest

COLOURS = ('#ffffff', '#ffd400', '#ff7a00', '#ff2d6f', '#b44cff', '#4c7dff')  # fine to coarse, then repeated


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', nargs='+', type=Path, metavar='IMAGE')
    parser.add_argument('--config', help="take size, thresholds and scorer from this config's backbone")
    parser.add_argument('--img-size', type=int,
                        help='resize the longest side to this and pad to a square; 0: neither (default 1536)')
    parser.add_argument('--thresholds', type=float, nargs='*', help='fine to coarse (default 2 2 0.3)')
    parser.add_argument('--scorer', choices=sorted(SCORERS), help='default entropy')
    parser.add_argument('--patch-size', type=int, help='base patch in pixels (default 16)')
    parser.add_argument('--out-dir', type=Path, default=Path('patches'))
    args = parser.parse_args(arguments)
    settings = dict(img_size=1536, thresholds=(2, 2, 0.3), scorer='entropy', patch_size=16)
    args.fit = resize_longest
    if args.config:
        from mmengine.config import Config
        cfg = Config.fromfile(args.config)
        settings |= {name: cfg.model.backbone[name] for name in settings if name in cfg.model.backbone}
        if cfg.get('default_scope') == 'mmseg':
            args.fit = crop_square  # a window of slide testing, where a detector gets a padded square
    for name, value in settings.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    root_px = args.patch_size * 2**len(args.thresholds)
    if args.img_size % root_px:
        parser.error(f'--img-size {args.img_size} is not a multiple of the largest patch, {root_px} px: use '
                     f'{-(-args.img_size // root_px) * root_px}, or 0 to keep the size')
    return args


def choose_patches(image: np.ndarray, patch_size: int, thresholds: tuple[float, ...], scorer: str,
                   img_size: int) -> TokenLayout:
    """The layout of one image (H, W, 3), padded with a constant to the square that a detector sees.

    With ``img_size`` 0 it is padded to whole patches of the largest size only.
    """
    num_scales = len(thresholds) + 1
    multiple = img_size or patch_size * 2**(num_scales - 1)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    height_px, width_px = pixels.shape[-2:]
    pixels = F.pad(pixels, (0, -width_px % multiple, 0, -height_px % multiple), value=124.0)
    scales = select_scales(get_scorer(scorer)(pixels, patch_size, num_scales), thresholds)
    return TokenLayout.from_scales(scales, num_scales=num_scales)


def draw_patches(image: np.ndarray, layout: TokenLayout, patch_size: int) -> Image.Image:
    """The image under each patch's outline in its scale's colour: faint for base patches, strong for merged ones."""
    canvas = Image.fromarray(image).convert('RGBA')
    overlay = Image.new('RGBA', canvas.size)
    draw = ImageDraw.Draw(overlay)
    rows, cols = layout.cell_yx
    for y, x, scale in zip(rows.tolist(), cols.tolist(), layout.scales.tolist(), strict=True):
        left, top, side = x * patch_size, y * patch_size, patch_size << scale
        colour = COLOURS[scale % len(COLOURS)]
        box = (left, top, left + side - 1, top + side - 1)
        if scale:
            draw.rectangle(box, fill=colour + '30', outline=colour + 'ff', width=1 + min(scale, 2))
        else:
            draw.rectangle(box, outline=colour + '60')
    return Image.alpha_composite(canvas, overlay).convert('RGB')


def describe(layout: TokenLayout, patch_size: int) -> str:
    """One line: tokens in all, kept-token fraction, tokens of each size."""
    sizes = ', '.join(f'{count} of {patch_size << scale} px' for scale, count in enumerate(layout.scale_counts))
    kept = layout.num_tokens / layout.num_cells
    return f'{layout.num_tokens} tokens of {layout.num_cells} cells, padding included ({kept:.1%} kept): {sizes}'


def output_path(out_dir: Path, image: Path, taken: set[Path]) -> Path:
    """out_dir/NAME_patches.png, numbered where two images share a name."""
    path, number = out_dir / f'{image.stem}_patches.png', 2
    while path in taken:
        path, number = out_dir / f'{image.stem}_patches_{number}.png', number + 1
    taken.add(path)
    return path


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    taken: set[Path] = set()
    failed = 0
    for path in args.images:
        try:
            photo = load_image(path)
        except ValueError as error:
            print(f'visualize_patches: {error}', file=sys.stderr)
            failed += 1
            continue
        image = np.asarray(args.fit(photo, args.img_size) if args.img_size else photo)
        layout = choose_patches(image, args.patch_size, tuple(args.thresholds), args.scorer, args.img_size)
        args.out_dir.mkdir(parents=True, exist_ok=True)
        target = output_path(args.out_dir, path, taken)
        draw_patches(image, layout, args.patch_size).save(target)
        print(f'{path}: {describe(layout, args.patch_size)} -> {target}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
