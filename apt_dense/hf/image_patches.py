"""Which patches an image has, as a map that can be made in a data loader and handed to a model."""
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from apt_dense.core.chooser import PatchChooser
from apt_dense.core.dropping import Random
from apt_dense.core.layout import TokenLayout
from apt_dense.core.reduction import Step
from apt_dense.core.runs import Runs

LEFT_OUT = -1  # in a map: no token covers this cell


def choose_patches(chooser: PatchChooser, pixels: Tensor, at_random: bool = False) -> Tensor:
    """Choose the patches of images.

    Args:
        chooser: of the model.
        pixels: (B, 3, H, W), normalised, float32.
        at_random: instead of merged patches take as many base patches, drawn at random for each image.  The draw
            follows from its pixels: an image has the same ones each time.

    Returns:
        (B, H / patch_size, W / patch_size) int8: the scale of the patch over each cell, 0 for a base patch, or
        ``LEFT_OUT``.

    Raises:
        ValueError: for a wrong shape, a pixel that is not finite, or a type too coarse for the grey levels.

    Source: APT (arXiv 2510.18091), which scores in the data loader; its baseline Random masks as many tokens as APT
    saves.
    """
    layout = chooser.layout(pixels)
    if not at_random:
        return layout.expand(layout.scales[:, None])[:, 0].to(torch.int8)
    cells = layout.height * layout.width
    patches = torch.full((layout.batch_size, cells), LEFT_OUT, dtype=torch.int8)
    for image, length, drawn in zip(pixels, layout.images.lengths, patches, strict=True):
        generator = torch.Generator().manual_seed(zlib.crc32(image.float().cpu().contiguous().numpy().tobytes()))
        drawn[torch.randperm(cells, generator=generator)[:length - layout.num_prefix]] = 0
    return patches.unflatten(1, (layout.height, layout.width)).to(pixels.device)


def count_tokens(patches: Tensor) -> list[int]:
    """Tokens of each image of a map (B, H, W), prefix rows not counted."""
    cells = patches.flatten(1)
    scales = range(max(int(patches.max()), 0) + 1)
    return sum((cells == scale).sum(1) >> 2 * scale for scale in scales).tolist()


def raster_order(layout: TokenLayout) -> Tensor:
    """The rows of all patches, by image, then row by row of the image by each patch's first cell, its top-left one.

    Returns:
        (T - P * B,) int64, P prefix rows of B images.  Where nothing is merged it is the dense model's order, which a
        language model was trained with; a merged patch stands where its first cell would.
    """
    y, x = layout.cell_yx
    place = (layout.images.index * layout.height + y) * layout.width + x
    return place.masked_fill(layout.scales < 0, -1).argsort(stable=True)[layout.num_prefix * layout.batch_size:]


class GivenCells(Random):
    """Keep given base patches alone.

    Attributes:
        kept_rows: (T,) bool of a dense layout, prefix rows included, for the next pass.
        lengths_left: rows of each image that it keeps.
    """

    def __init__(self, depth: int):
        super().__init__(depth, kept=1.0)
        self.kept_rows: Tensor | None = None
        self.lengths_left: tuple[int, ...] = ()

    def lengths(self, lengths: Sequence[int], prefix: Sequence[int],
                merged: tuple[int, ...] | None = None) -> tuple[int, ...]:
        if self.kept_rows is None:
            raise ValueError('which patches are left out is chosen for LLaVA alone: call the model, not its tower')
        return self.lengths_left

    def start(self, x: Tensor, runs: Runs, prefix: tuple[int, ...], wanted: tuple[int, ...]) -> Step:
        rows = self.kept_rows.nonzero().flatten()
        dest = (self.kept_rows.cumsum(0) - 1).where(self.kept_rows, -1)
        return Step(x[rows], None, wanted, rows, dest)
