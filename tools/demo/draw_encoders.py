#!/usr/bin/env python
"""Draw the picture of docs/encoders.md: one photograph as three encoders cut it.

    python tools/demo/draw_encoders.py

The patches follow from the pixels alone, so the encoders need no weights, and are built without memory.
"""
import argparse
from pathlib import Path

import torch

from apt_dense import APTSAM3, APTDINOv3, APTViT, PackedViT
from apt_dense.drawing.panels import Panel, join_panels
from apt_dense.drawing.patches import count_scales, draw_patches, scale_maps
from apt_dense.extras import from_extra

with from_extra('tools'):
    import numpy as np
    import skimage
    from PIL import Image, ImageDraw

    from apt_dense.calibration.images import to_input

ROOT = Path(__file__).parents[2]
THRESHOLDS = (5.75, 4.0)
# Label, family and preset, side in pixels.
ROWS = (('DINOv3-L', APTDINOv3, 'L', 512), ('CLIP-L', APTViT, 'clip_l_336', 336),
        ("SAM 3's, windows of 24 cells (white)", APTSAM3, 'sam3', 1008))
HEIGHT_PX = 400


def panel(label: str, model: PackedViT, photo: Image.Image, size_px: int) -> Panel:
    """The photograph at the encoder's size with the patches that it chooses."""
    picture = photo.resize((size_px, size_px), Image.Resampling.BILINEAR)
    layout = model.make_layout(to_input(picture, size_px, model.chooser.img_mean, model.chooser.img_std))
    scales, = scale_maps(layout)
    drawn = draw_patches(np.array(picture), scales, model.patch_size)
    window_px = model.window_size * model.patch_size
    draw = ImageDraw.Draw(drawn)
    for place in range(window_px, size_px if window_px else 0, window_px or 1):
        draw.line([(place, 0), (place, size_px)], 'white', 5)
        draw.line([(0, place), (size_px, place)], 'white', 5)
    counts = count_scales(scales, model.num_scales)
    kept = sum(counts) / layout.num_cells
    return Panel(drawn.resize((HEIGHT_PX, HEIGHT_PX), Image.Resampling.LANCZOS),
                 f'{label}\n{size_px} px: {100 * kept:.0f} % of {layout.num_cells} tokens', counts, model.patch_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/pictures/encoders.jpg')
    args = parser.parse_args()
    photo = Image.open(Path(skimage.__path__[0], 'data/astronaut.png')).convert('RGB')
    panels = []
    for label, family, preset, size_px in ROWS:
        with torch.device('meta'):
            model = family.from_preset(preset, img_size=size_px, num_scales=len(THRESHOLDS) + 1, thresholds=THRESHOLDS)
        panels.append(panel(label, model, photo, size_px))
    picture = join_panels([panels])
    picture.save(args.out, quality=80, optimize=True)
    print(f'{args.out}: {picture.width} x {picture.height} px, {args.out.stat().st_size / 1000:.0f} kB')


if __name__ == '__main__':
    main()
