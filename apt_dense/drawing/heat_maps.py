"""Score maps as heat maps, with a colour bar."""
from collections.abc import Sequence

from apt_dense.drawing.panels import font_of
from apt_dense.drawing.patches import hatch_padding
from apt_dense.extras import from_extra

with from_extra('images'):
    import numpy as np
    from PIL import Image, ImageDraw

# From a low score, which merges, to a high one: dark to light for all eyes.
RAMP = np.array([(14, 10, 60), (90, 20, 130), (190, 50, 110), (245, 130, 60), (252, 240, 160)], float)
BAR_PX = 18


def colours(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Numbers of any shape (...) -> (..., 3) uint8, RGB; what is not between ``low`` and ``high`` has the end's."""
    places = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * (len(RAMP) - 1)
    ends = np.arange(len(RAMP))
    return np.stack([np.interp(places, ends, RAMP[:, channel]) for channel in range(3)], -1).round().astype(np.uint8)


def draw_heat_map(scores: np.ndarray, patch_px: int, size_px: tuple[int, int], low: float, high: float,
                  content_px: tuple[int, int] | None = None) -> Image.Image:
    """One square for each patch.

    Args:
        scores: (rows, cols), of patches of ``patch_px`` pixels a side.
        size_px: height and width of the picture.
        low, high: the scores at the ends of the colours.
        content_px: height and width of what is no padding; the rest is hatched.
    """
    squares = colours(scores, low, high).repeat(patch_px, 0).repeat(patch_px, 1)[:size_px[0], :size_px[1]]
    return Image.fromarray(hatch_padding(squares, content_px))


def draw_colour_bar(height_px: int, low: float, high: float, marks: Sequence[float] = ()) -> Image.Image:
    """A bar with the least and the largest score, and a line at each of some thresholds."""
    font = font_of(height_px)
    texts = [(high, f'{high:.3g}'), (low, f'{low:.3g}')]
    texts += [(mark, f'{mark:.4g}') for mark in dict.fromkeys(marks) if low < mark < high]
    width = BAR_PX + 12 + round(max(font.getlength(text) for _, text in texts))
    bar = Image.new('RGB', (width, height_px), 'white')
    ramp = colours(np.linspace(high, low, height_px), low, high)[:, None].repeat(BAR_PX, 1)
    bar.paste(Image.fromarray(ramp), (0, 0))
    draw = ImageDraw.Draw(bar)
    taken: list[float] = []
    for value, text in texts:
        y = (high - value) / max(high - low, 1e-12) * (height_px - 1)
        top = min(max(y - font.size / 2, 0), height_px - font.size - 4)
        if any(abs(top - other) < font.size for other in taken):
            continue
        taken.append(top)
        draw.line((0, y, BAR_PX + 4, y), fill='black')
        draw.text((BAR_PX + 7, top), text, fill='black', font=font)
    return bar


def score_range(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """The least score and the 99th percentile, which one bright patch does not move."""
    values = np.concatenate([scores.ravel() for scores in maps])
    low, high = float(values.min()), float(np.percentile(values, 99))
    return low, high if high > low else low + 1.0
