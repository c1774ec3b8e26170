#!/usr/bin/env python
"""Draw the README's picture: a photograph, the patches that APT gives it, and the feature map that comes out.

    python tools/demo/draw_overview.py

The model is that of the ten lines of docs/using.md: EVA-02-S with random weights, so the feature map's colours show
which cells are alike in the input, and nothing that was learnt.
"""
import argparse
from pathlib import Path

import torch

from apt_dense import APTEVA02
from apt_dense.calibration.images import PATCH_COLOURS, crop_square, load_image, to_input
from apt_dense.core.layout import TokenLayout
from apt_dense.extras import from_extra

with from_extra('tools'):
    import matplotlib
    import numpy as np
    import skimage
    from matplotlib import pyplot as plt
    from matplotlib.patches import ConnectionPatch, Patch, Rectangle

ROOT = Path(__file__).parents[2]
COFFEE = Path(skimage.__path__[0], 'data/coffee.png')  # Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0
SIZE_PX = 1024  # of the square in the photograph's middle
THRESHOLDS = (5.75, 5.5, 5.0)  # of 32, 64 and 128 px, in bits
INK = '#1f2328'
FAINT = dict(edgecolor=f'{PATCH_COLOURS[0]}80', linewidth=0.3)  # the outline of a base patch


def principal_colours(feature_map: torch.Tensor) -> np.ndarray:
    """The first three principal components of a feature map as red, green and blue.

    Args:
        feature_map: (C, H, W).

    Returns:
        (H, W, 3) in 0..1; each component runs from its 2nd percentile to its 98th.
    """
    channels, height, width = feature_map.shape
    vectors = feature_map.reshape(channels, -1).T.double()
    vectors = vectors - vectors.mean(0)
    _, _, directions = torch.linalg.svd(vectors, full_matrices=False)
    values = vectors @ directions[:3].T
    low, high = torch.quantile(values, torch.tensor([0.02, 0.98], dtype=values.dtype), dim=0)
    return ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).reshape(height, width, 3).numpy()


def draw_patches(axis: plt.Axes, image: np.ndarray, layout: TokenLayout, patch_size: int) -> None:
    """The photograph in grey under one square a token, in its size's colour."""
    grey = image.astype(float) @ (0.2989, 0.5870, 0.1140) / 255
    axis.imshow(0.15 + 0.75 * grey, cmap='gray', vmin=0, vmax=1, extent=(0, SIZE_PX, SIZE_PX, 0))
    rows, cols = layout.cell_yx
    for y, x, scale in zip(rows.tolist(), cols.tolist(), layout.scales.tolist(), strict=True):
        corner, side = (x * patch_size, y * patch_size), patch_size << scale
        if scale:
            axis.add_patch(Rectangle(corner, side, side, facecolor=PATCH_COLOURS[scale], alpha=0.45, linewidth=0))
        edge = dict(edgecolor=PATCH_COLOURS[scale], linewidth=0.8 + 0.5 * scale) if scale else FAINT
        axis.add_patch(Rectangle(corner, side, side, fill=False, **edge))


def draw(image: np.ndarray, layout: TokenLayout, colours: np.ndarray, patch_size: int) -> plt.Figure:
    """The three panels, an arrow between each two, and a legend of the patch sizes."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.75), facecolor='white')
    figure.subplots_adjust(left=0.012, right=0.988, top=0.915, bottom=0.105, wspace=0.12)
    extent = (0, SIZE_PX, SIZE_PX, 0)
    axes[0].imshow(image, extent=extent)
    draw_patches(axes[1], image, layout, patch_size)
    axes[2].imshow(colours, extent=extent, interpolation='nearest')
    titles = (f'photograph, {SIZE_PX} x {SIZE_PX} px', f'{layout.num_tokens} patches instead of {layout.num_cells}',
              f'feature map, {layout.height} x {layout.width}')
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=15, color=INK, pad=8, fontweight='bold')
        axis.set(xticks=[], yticks=[], xlim=(0, SIZE_PX), ylim=(SIZE_PX, 0))
    for left, right in zip(axes[:-1], axes[1:], strict=True):
        figure.add_artist(ConnectionPatch((1.01, 0.5), (-0.01, 0.5), 'axes fraction', 'axes fraction', axesA=left,
                                          axesB=right, arrowstyle='-|>', mutation_scale=26, linewidth=2.5, color=INK))
    handles = [Patch(facecolor=colour, edgecolor=INK, label=f'{patch_size << scale} px: {count} patches')
               for scale, (colour, count) in enumerate(zip(PATCH_COLOURS, layout.scale_counts, strict=False))]
    figure.legend(handles=handles, loc='lower center', bbox_to_anchor=(0.5, 0.0), ncols=len(handles), frameon=False,
                  fontsize=14, labelcolor=INK, handlelength=1.1, handleheight=1.1, handletextpad=0.5, columnspacing=1.6)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--photo', type=Path, default=COFFEE, help="default: scikit-image's coffee.png")
    parser.add_argument('--thresholds', type=float, nargs=3, default=THRESHOLDS, help='of 32, 64 and 128 px')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/overview.jpg')
    args = parser.parse_args(arguments)
    matplotlib.use('Agg')
    torch.manual_seed(0)
    model = APTEVA02.from_preset('S', img_size=SIZE_PX, num_scales=4, thresholds=args.thresholds).eval()
    image = crop_square(load_image(args.photo), SIZE_PX, 'pillow')
    with torch.inference_mode():
        feature_map, = model(to_input(image, SIZE_PX))
    figure = draw(np.asarray(image), model.last_layout, principal_colours(feature_map[0]), model.patch_size)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=130, pil_kwargs=dict(quality=84, subsampling=0))
    plt.close(figure)
    print(f'{args.out}: {model.last_layout.num_tokens} of {model.last_layout.num_cells} tokens, '
          f'{args.out.stat().st_size / 1000:.0f} kB')


if __name__ == '__main__':
    main()
