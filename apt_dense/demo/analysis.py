"""What the demo shows of a photograph: patches, scores, tokens and the speed-up that follows; without any page."""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from apt_dense.calibration.images import load_image, resize_longest, to_input
from apt_dense.calibration.inputs import BackboneInput
from apt_dense.calibration.shares import thresholds_for
from apt_dense.calibration.thresholds import ScoreMaps
from apt_dense.core.chooser import PatchChooser
from apt_dense.core.eva02 import APTEVA02, PRESETS
from apt_dense.core.flops import dense_layout, multiply_adds
from apt_dense.core.layout import TokenLayout
from apt_dense.drawing.panels import Panel, join_panels
from apt_dense.drawing.variants import draw_layouts, heat_map_panels
from apt_dense.extras import from_extra

with from_extra('images'):
    from PIL import Image

SIZES_PX = (512, 1024, 1536)  # whole windows of the detectors
WINDOW_CELLS, NUM_SCALES = 32, 4
MODELS = ('B', 'L')
MAX_MEGAPIXELS = 50


@dataclass(frozen=True)
class Analysis:
    """What is shown.

    Attributes:
        patches: the patch grid over the photograph, padding hatched.
        heat_maps: the scores of each patch size, with a colour bar.
        tokens: a row for each patch size: its side, its tokens, the share of the area that they cover.
        speed: a row for each model: its name, multiply-adds of the dense backbone and of this one, and their ratio.
        thresholds: fine to coarse.
        kept: tokens over cells, padding left out.
    """
    patches: Image.Image
    heat_maps: Image.Image
    tokens: list[list[str]]
    speed: list[list[str]]
    thresholds: tuple[float, ...]
    kept: float


def read_upload(path: str | Path | None) -> Image.Image:
    """The photograph in a file that somebody has given.

    Raises:
        ValueError: for no file, one that is no picture, or one of more than ``MAX_MEGAPIXELS``: what a person is to be
            told.
    """
    if path is None:
        raise ValueError('Drop a photograph to begin.')
    name = Path(path).name
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f'{name} is no picture that can be read: give a JPEG, PNG, WebP, TIFF or BMP file.') from error
    if width * height > MAX_MEGAPIXELS * 1e6:
        raise ValueError(f'{name} has {width} x {height} pixels, {width * height / 1e6:.0f} megapixels: give one of at '
                         f'most {MAX_MEGAPIXELS}.')
    try:
        return load_image(Path(path))
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), name)) from error


def analyse(image: Image.Image, size_px: int, thresholds: Sequence[float], kept: float | None = None,
            scorer: str = 'entropy') -> Analysis:
    """Choose the patches of a photograph as a detector of this size would: longest side resized, padded to a square.

    Args:
        size_px: one of ``SIZES_PX``.
        thresholds: fine to coarse, ``NUM_SCALES - 1``.
        kept: in place of thresholds, the share of the photograph's tokens to keep; one threshold for all sizes is
            found, that of the least difference where the share is out of reach.

    Raises:
        ValueError: for another size, or thresholds that are no numbers.
    """
    if size_px not in SIZES_PX:
        raise ValueError(f'size_px={size_px}: choose one of {SIZES_PX}')
    if None in thresholds:
        raise ValueError('Give a number for each threshold.')
    resized = resize_longest(image, size_px, 'pillow')
    window = BackboneInput(to_input(resized, size_px), (resized.height, resized.width))
    chooser = PatchChooser(NUM_SCALES, tuple(thresholds), scorer, window_size=WINDOW_CELLS)
    content = window.content_cells(chooser.patch_size)
    if kept is not None:
        chooser.thresholds = nearest_thresholds(chooser, [window], kept)
    layout = chooser.layout(window.x)
    share = int(layout.covers_content([content]).sum()) / (content[0] * content[1])
    patches = Panel(draw_layouts([window], [layout], chooser), f'{share:.1%} of the tokens kept, padding left out',
                    layout.scale_counts, chooser.patch_size)
    return Analysis(join_panels([[patches]]), join_panels([heat_map_panels(scorer, [chooser], [window])]),
                    _token_rows(layout, chooser.patch_size), _speed_rows(layout), chooser.thresholds, share)


def nearest_thresholds(chooser: PatchChooser, windows: Sequence[BackboneInput], kept: float) -> tuple[float, ...]:
    """One threshold for all patch sizes that keeps this share of a picture's tokens, the nearest that there is.

    Args:
        windows: what a backbone gets of the picture.
    """
    maps = ScoreMaps(chooser.num_scales)
    for window in windows:
        maps.add([scores[0] for scores in chooser.scores(window.x)], window.content_cells(chooser.patch_size))
    try:
        return thresholds_for(maps, kept, ())
    except ValueError:  # flat patches always merge, and not even the largest patches are as few as wanted
        most = maps.count_tokens((1e-9,) * (chooser.num_scales - 1), True).sum() / maps.num_content_cells.sum()
        return (1e-9 if kept > most else 1.001 * maps.max_score + 1e-9,) * (chooser.num_scales - 1)


def _token_rows(layout: TokenLayout, patch_size: int) -> list[list[str]]:
    return [[f'{patch_size << scale} px', str(count), f'{(count << 2 * scale) / layout.num_cells:.1%}']
            for scale, count in enumerate(layout.scale_counts)]


def _speed_rows(layout: TokenLayout) -> list[list[str]]:
    rows = []
    for name in MODELS:
        model = _backbone(name)
        dense, apt = (multiply_adds(model, each).total for each in (dense_layout(layout), layout))
        rows.append([f'EVA-02-{name}', f'{dense / 1e9:.0f} G', f'{apt / 1e9:.0f} G', f'{dense / apt:.2f} x'])
    return rows


@cache
def _backbone(name: str) -> APTEVA02:
    """A detector's backbone without weights, for its sizes."""
    with torch.device('meta'):
        return APTEVA02(**PRESETS[name], img_size=1536, window_size=WINDOW_CELLS, num_scales=NUM_SCALES,
                        thresholds=(0.0,) * (NUM_SCALES - 1))
