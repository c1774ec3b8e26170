"""Pictures side by side, each under its label."""
from collections.abc import Sequence
from dataclasses import dataclass

from apt_dense.calibration.images import PATCH_COLOURS
from apt_dense.extras import from_extra

with from_extra('images'):
    from PIL import Image, ImageDraw, ImageFont

GAP_PX = 8


@dataclass(frozen=True)
class Panel:
    """A picture and its label.

    Attributes:
        picture: of any size.
        label: lines above it; long ones are broken.
        counts: tokens of each patch size, fine to coarse, told below the label in the patches' colours.
        patch_size: side of a base patch in pixels, for the counts.
    """
    picture: Image.Image
    label: str
    counts: Sequence[int] = ()
    patch_size: int = 16


def font_of(side_px: int) -> ImageFont.FreeTypeFont:
    """A font that can be read beside a picture of this side."""
    return ImageFont.load_default(min(max(11, side_px // 32), 30))


def join_panels(rows: Sequence[Sequence[Panel]]) -> Image.Image:
    """All panels in their rows; each column is as wide as its widest panel."""
    widths = [max(row[column].picture.width for row in rows if column < len(row))
              for column in range(max(map(len, rows)))]
    font = font_of(max(panel.picture.width for row in rows for panel in row))
    drawn = [[_with_label(panel, width, font) for panel, width in zip(row, widths, strict=False)] for row in rows]
    heights = [max(picture.height for picture in row) for row in drawn]
    canvas = Image.new('RGB', (sum(widths) + GAP_PX * (len(widths) - 1), sum(heights) + GAP_PX * (len(rows) - 1)),
                       'white')
    top = 0
    for row, height in zip(drawn, heights, strict=True):
        left = 0
        for picture, width in zip(row, widths, strict=False):
            canvas.paste(picture, (left, top + height - picture.height))
            left += width + GAP_PX
        top += height + GAP_PX
    return canvas


def _with_label(panel: Panel, width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    lines = [part for line in panel.label.splitlines() for part in _broken(line, width, font)]
    swatches = [(PATCH_COLOURS[scale % len(PATCH_COLOURS)], f'{count} of {panel.patch_size << scale} px')
                for scale, count in enumerate(panel.counts)]
    line_px = round(font.size * 1.3)
    rows = _in_rows(swatches, width, font)
    label_px = line_px * (len(lines) + len(rows)) + 4 if lines or rows else 0
    canvas = Image.new('RGB', (width, label_px + panel.picture.height), 'white')
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((2, number * line_px), line, fill='black', font=font)
    for number, row in enumerate(rows, start=len(lines)):
        left, side = 2, round(font.size * 0.8)
        for colour, text in row:
            top = number * line_px + 3
            draw.rectangle((left, top, left + side, top + side), fill=colour, outline='black')
            draw.text((left + side + 4, number * line_px), text, fill='black', font=font)
            left += side + 14 + round(font.getlength(text))
    canvas.paste(panel.picture, (0, label_px))
    return canvas


def _in_rows(swatches: list[tuple[str, str]], width: int,
             font: ImageFont.FreeTypeFont) -> list[list[tuple[str, str]]]:
    rows: list[list[tuple[str, str]]] = []
    left = width
    for swatch in swatches:
        needed = round(font.size * 0.8) + 14 + font.getlength(swatch[1])
        if left + needed > width or not rows:
            rows.append([])
            left = 2
        rows[-1].append(swatch)
        left += needed
    return rows


def _broken(line: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """A line in parts that fit, broken between words."""
    parts = ['']
    for word in line.split(' '):
        longer = f'{parts[-1]} {word}'.strip()
        if parts[-1] and font.getlength(longer) > width - 4:
            parts.append(word)
        else:
            parts[-1] = longer
    return parts
