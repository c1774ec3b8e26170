"""Patches over the image that they were chosen for."""
from collections.abc import Sequence

from apt_dense.calibration.images import PATCH_COLOURS
from apt_dense.core.layout import TokenLayout
from apt_dense.extras import from_extra

with from_extra('images'):
    import numpy as np
    from PIL import Image, ImageDraw

PADDING_GREY, HATCH_GREY, HATCH_PX = 222, 150, 12


def scale_maps(layout: TokenLayout) -> list[np.ndarray]:
    """For each image of a layout the scale of the patch over each cell, (rows, cols) int; 0 is a base patch."""
    layout = layout.without_prefix
    return list(layout.expand(layout.scales[:, None].double())[:, 0].round().long().cpu().numpy())


def draw_patches(image: np.ndarray, scales: np.ndarray, patch_size: int,
                 content_px: tuple[int, int] | None = None) -> Image.Image:
    """The image under each patch's outline in its scale's colour: faint for base patches, strong for merged ones.

    Args:
        image: (H, W, 3) uint8, RGB.
        scales: of the cells from the image's top left, see ``scale_maps``; what is beyond the image is cut.
        patch_size: side of a cell in pixels.
        content_px: height and width of what is no padding; the rest is hatched.
    """
    canvas = Image.fromarray(hatch_padding(image, content_px)).convert('RGBA')
    overlay = Image.new('RGBA', canvas.size)
    draw = ImageDraw.Draw(overlay)
    for y, x, scale in patch_corners(scales):
        left, top, side = x * patch_size, y * patch_size, patch_size << scale
        colour = PATCH_COLOURS[scale % len(PATCH_COLOURS)]
        box = (left, top, left + side - 1, top + side - 1)
        if scale:
            draw.rectangle(box, fill=colour + '30', outline=colour + 'ff', width=1 + min(scale, 2))
        else:
            draw.rectangle(box, outline=colour + '60')
    return Image.alpha_composite(canvas, overlay).convert('RGB')


def patch_corners(scales: np.ndarray) -> list[tuple[int, int, int]]:
    """Row, column and scale of each patch's top-left cell."""
    rows, cols = np.indices(scales.shape)
    sides = 1 << scales
    first = (rows % sides == 0) & (cols % sides == 0)
    return list(zip(rows[first].tolist(), cols[first].tolist(), scales[first].tolist(), strict=True))


def count_scales(scales: np.ndarray, num_scales: int) -> list[int]:
    """Patches of each scale, fine to coarse."""
    found = [scale for _, _, scale in patch_corners(scales)]
    return [found.count(scale) for scale in range(num_scales)]


def hatch_padding(image: np.ndarray, content_px: Sequence[int] | None) -> np.ndarray:
    """The image (H, W, 3) uint8, grey with diagonal lines where it is padding, below and right of its content."""
    if content_px is None or tuple(content_px) == image.shape[:2]:
        return image
    rows, cols = np.indices(image.shape[:2])
    lines = np.where((rows + cols) % HATCH_PX < 2, HATCH_GREY, PADDING_GREY).astype(np.uint8)
    padding = (rows >= content_px[0]) | (cols >= content_px[1])
    return np.where(padding[..., None], lines[..., None], image)
