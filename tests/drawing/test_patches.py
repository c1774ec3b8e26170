"""The corners of patches in a map of scales."""
import numpy as np
import torch

from apt_dense.core.layout import TokenLayout
from apt_dense.drawing.patches import count_scales, patch_corners, scale_maps


def test_corners_are_the_tokens_of_a_layout():
    """Two images, 4 x 8 cells, of 3 scales, with a class token."""
    scales = torch.zeros(2, 4, 8, dtype=torch.int64)
    scales[0, :, 4:], scales[0, :2, :2], scales[1, 2:, 6:] = 2, 1, 1
    layout = TokenLayout.from_scales(scales, 0, 3, True)
    maps = scale_maps(layout)
    assert all(np.array_equal(found, wanted) for found, wanted in zip(maps, scales.numpy(), strict=True))
    assert patch_corners(maps[0])[:3] == [(0, 0, 1), (0, 2, 0), (0, 3, 0)]
    assert [count_scales(found, 3) for found in maps] == [[12, 1, 1], [28, 1, 0]]
