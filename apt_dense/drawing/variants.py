"""The patches and scores of an image under several choosers, side by side."""
from collections.abc import Sequence

from apt_dense.calibration.inputs import BackboneInput
from apt_dense.core.chooser import PatchChooser
from apt_dense.core.layout import TokenLayout
from apt_dense.drawing.heat_maps import draw_colour_bar, draw_heat_map, score_range
from apt_dense.drawing.panels import GAP_PX, Panel, join_panels
from apt_dense.drawing.patches import draw_patches, scale_maps
from apt_dense.extras import from_extra

with from_extra('images'):
    import numpy as np
    from PIL import Image

Variant = tuple[str, PatchChooser]  # a label and what chooses


def draw_variants(variants: Sequence[tuple[str, Sequence[Variant]]], windows: Sequence[BackboneInput],
                  heat_maps: bool) -> tuple[Image.Image, list[str]]:
    """One picture of all variants, a row for each scorer, and a line about each variant.

    Args:
        variants: scorer, and for each of its thresholds a label and a chooser.
    """
    rows, lines = [], []
    for scorer, choosers in variants:
        row = []
        for label, chooser in choosers:
            layouts = [chooser.layout(window.x) for window in windows]
            lines.append(describe(windows, layouts, chooser.patch_size))
            counts = np.sum([layout.scale_counts for layout in layouts], 0).tolist()
            share = lines[-1].rpartition('(')[2].removesuffix(' kept)')
            row.append(Panel(draw_layouts(windows, layouts, chooser), f'{scorer}, {label}: {share} kept', counts,
                             chooser.patch_size))
        if heat_maps:
            row += heat_map_panels(scorer, [chooser for _, chooser in choosers], windows)
        rows.append(row)
    single = len(rows) == len(rows[0]) == 1
    return rows[0][0].picture if single else join_panels(rows), lines


def heat_map_panels(scorer: str, choosers: Sequence[PatchChooser], windows: Sequence[BackboneInput]) -> list[Panel]:
    """For each merged patch size its scores, with a colour bar that has the thresholds."""
    chooser = choosers[0]
    panels = []
    for scale, maps in enumerate(zip(*(chooser.scores(window.x) for window in windows), strict=True), start=1):
        side = chooser.patch_size << scale
        maps = [scores[0].numpy() for scores in maps]
        inside = [scores[:-(-window.content_px[0] // side), :-(-window.content_px[1] // side)]
                  for scores, window in zip(maps, windows, strict=True)]
        low, high = score_range(inside)
        drawn = [draw_heat_map(scores, side, tuple(window.x.shape[2:]), low, high, window.content_px)
                 for scores, window in zip(maps, windows, strict=True)]
        picture = join_windows(windows, drawn)
        bar = draw_colour_bar(picture.height, low, high, [one.thresholds[scale - 1] for one in choosers])
        both = Image.new('RGB', (picture.width + GAP_PX + bar.width, picture.height), 'white')
        both.paste(picture, (0, 0))
        both.paste(bar, (picture.width + GAP_PX, 0))
        panels.append(Panel(both, f'{scorer} of {side} px'))
    return panels


def draw_layouts(windows: Sequence[BackboneInput], layouts: Sequence[TokenLayout],
                 chooser: PatchChooser) -> Image.Image:
    """The patches over all windows of an image, padding hatched."""
    pictures = []
    for window, layout in zip(windows, layouts, strict=True):
        pixels = chooser.restore(window.x)[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
        pictures.append(draw_patches(pixels, scale_maps(layout)[0], chooser.patch_size, window.content_px))
    return join_windows(windows, pictures)


def join_windows(windows: Sequence[BackboneInput], pictures: Sequence[Image.Image]) -> Image.Image:
    """The pictures of an image's windows, side by side in their rows and columns."""
    rows, cols = (sorted({window.corner_px[axis] for window in windows}) for axis in (0, 1))
    width, height = (max(picture.size[axis] for picture in pictures) + GAP_PX for axis in (0, 1))
    canvas = Image.new('RGB', (len(cols) * width - GAP_PX, len(rows) * height - GAP_PX), 'white')
    for window, picture in zip(windows, pictures, strict=True):
        y, x = window.corner_px
        canvas.paste(picture, (cols.index(x) * width, rows.index(y) * height))
    return canvas


def describe(windows: Sequence[BackboneInput], layouts: Sequence[TokenLayout], patch_size: int) -> str:
    """One line: tokens in all, kept-token fractions with padding and without, tokens of each size."""
    sizes = ', '.join(f'{sum(counts)} of {patch_size << scale} px' for scale, counts in
                      enumerate(zip(*(layout.scale_counts for layout in layouts), strict=True)))
    tokens, cells = sum(sum(layout.scale_counts) for layout in layouts), sum(layout.num_cells for layout in layouts)
    content = [window.content_cells(patch_size) for window in windows]
    content_tokens = sum(int(layout.covers_content([limits]).sum())
                         for layout, limits in zip(layouts, content, strict=True))
    content_cells = sum(rows * cols for rows, cols in content)
    inputs = '' if len(windows) == 1 else f' in {len(windows)} windows'
    return (f'{tokens} tokens of {cells} cells{inputs}, padding included ({tokens / cells:.1%} kept): {sizes}; without '
            f'padding {content_tokens} of {content_cells} ({content_tokens / content_cells:.1%} kept)')
