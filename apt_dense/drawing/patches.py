"""Patches over the image that they were chosen for."""
from apt_dense.calibration.images import PATCH_COLOURS
from apt_dense.core.layout import TokenLayout
from apt_dense.extras import from_extra

with from_extra('images'):
    import numpy as np
    from PIL import Image, ImageDraw


def draw_patches(image: np.ndarray, layout: TokenLayout, patch_size: int) -> Image.Image:
    """The image under each patch's outline in its scale's colour: faint for base patches, strong for merged ones."""
    layout = layout.without_cls_tokens
    canvas = Image.fromarray(image).convert('RGBA')
    overlay = Image.new('RGBA', canvas.size)
    draw = ImageDraw.Draw(overlay)
    rows, cols = layout.cell_yx
    for y, x, scale in zip(rows.tolist(), cols.tolist(), layout.scales.tolist(), strict=True):
        left, top, side = x * patch_size, y * patch_size, patch_size << scale
        colour = PATCH_COLOURS[scale % len(PATCH_COLOURS)]
        box = (left, top, left + side - 1, top + side - 1)
        if scale:
            draw.rectangle(box, fill=colour + '30', outline=colour + 'ff', width=1 + min(scale, 2))
        else:
            draw.rectangle(box, outline=colour + '60')
    return Image.alpha_composite(canvas, overlay).convert('RGB')
