"""What a backbone gets of an image."""
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class BackboneInput:
    """What the backbone gets at once: an image, or one window of slide inference.

    Attributes:
        x: (1, 3, H, W), normalised and padded.
        content_px: height and width of the image in it; what is below and to the right is padding.
        corner_px: row and column of the window in the image that the pipeline gives; (0, 0) for a whole image.
    """
    x: Tensor
    content_px: tuple[int, int]
    corner_px: tuple[int, int] = (0, 0)

    def content_cells(self, patch_size: int) -> tuple[int, int]:
        """Rows and columns of cells that hold a pixel of the image."""
        height_px, width_px = self.content_px
        return -(-height_px // patch_size), -(-width_px // patch_size)
