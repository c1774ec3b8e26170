"""Properties of layout, packing and expansion over random image sizes, scales, thresholds and windows."""
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apt_dense import TokenLayout, patch_entropy, select_scales

pytestmark = pytest.mark.own_device  # they compare with numpy

NEVER, ALWAYS = -1.0, float('inf')  # thresholds that merge no patch and every patch
# The same cases in every run, and no files: .hypothesis would hold failing cases of another machine.
cases = settings(max_examples=600, derandomize=True, database=None, deadline=None)


class Case(NamedTuple):
    """A scale map (B, H, W) that ``select_scales`` made, and how it is to be laid out."""
    scales: Tensor
    window_size: int
    num_scales: int
    num_prefix: int

    def layout(self) -> TokenLayout:
        return TokenLayout.from_scales(*self)


@st.composite
def random_cases(draw) -> Case:
    """Scores of 0 to 9 and thresholds over the same numbers, so that many scores equal their threshold."""
    num_scales = draw(st.integers(1, 4))
    root = 2**(num_scales - 1)
    window_size = root * draw(st.integers(0, 3))
    unit = window_size or root
    batch, height, width = draw(st.integers(1, 3)), unit * draw(st.integers(1, 3)), unit * draw(st.integers(1, 3))
    thresholds = draw(st.lists(st.sampled_from((NEVER, ALWAYS, *range(1, 10))), min_size=num_scales - 1,
                               max_size=num_scales - 1))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = [torch.randint(10, (batch, height >> scale, width >> scale), generator=generator).float()
              for scale in range(num_scales)]
    return Case(select_scales(scores, thresholds), window_size, num_scales,
                draw(st.sampled_from((0, 1, 5))) if window_size == 0 else 0)


def owners(layout: TokenLayout) -> np.ndarray:
    """(B, H, W): the token over each cell, painted token by token; fails where two paint one cell or none does."""
    owner = np.full((layout.batch_size, layout.height, layout.width), -1)
    image = np.repeat(np.arange(layout.batch_size), layout.images.lengths)
    y, x = (part.numpy() for part in layout.cell_yx)
    for scale in range(layout.num_scales):
        rows = np.flatnonzero(layout.scales.numpy() == scale)
        offset_y, offset_x = np.mgrid[:2**scale, :2**scale].reshape(2, -1, 1)
        cells = image[rows], y[rows] + offset_y, x[rows] + offset_x
        assert (owner[cells] == -1).all()
        owner[cells] = rows
    assert (owner >= 0).all()
    assert (np.bincount(owner.ravel(), minlength=layout.num_tokens) == layout.areas.numpy()).all()
    return owner


@cases
@given(random_cases())
def test_each_cell_is_covered_exactly_once(case):
    layout = case.layout()
    owner = owners(layout)
    assert (layout.scales.numpy()[owner] == case.scales.numpy()).all()
    index = torch.arange(layout.num_tokens, dtype=torch.float64)[:, None]
    assert (layout.expand(index)[:, 0].numpy() == owner).all()
    num_prefix = layout.batch_size * case.num_prefix
    assert sum(layout.scale_counts) + num_prefix == layout.num_tokens == layout.starts.numel()
    assert layout.is_dense == (not case.scales.any())


@cases
@given(random_cases())
def test_windows_and_images_are_contiguous_runs(case):
    """Each token lies inside one window, and the runs name the tokens of each window, and image, in raster order."""
    layout = case.layout()
    owner = owners(layout)
    side_y, side_x = (case.window_size,) * 2 if case.window_size else owner.shape[1:]
    windows = owner.reshape(owner.shape[0], owner.shape[1] // side_y, side_y, owner.shape[2] // side_x, side_x)
    windows = windows.transpose(0, 1, 3, 2, 4).reshape(-1, side_y * side_x)
    for runs, groups in ((layout.windows, windows), (layout.images, owner.reshape(owner.shape[0], -1))):
        ends = runs.cu_seqlens.tolist()
        assert ends[0] == 0 and ends[-1] == layout.num_tokens and len(ends) == len(groups) + 1
        for begin, end, group in zip(ends[:-1], ends[1:], groups, strict=True):
            assert np.unique(group).tolist() == list(range(begin + case.num_prefix, end))


@cases
@given(random_cases())
def test_packing_and_expansion_are_inverse(case):
    layout = case.layout()
    cells = torch.arange(layout.num_cells, dtype=torch.float64).view(layout.batch_size, 1, layout.height, layout.width)
    packed = layout.pack(cells).requires_grad_()
    expanded = layout.expand(packed)
    assert torch.equal(layout.pack(expanded), packed)
    if layout.is_dense:
        assert torch.equal(expanded, cells)
    expanded.sum().backward()
    assert torch.equal(packed.grad[:, 0], layout.areas.double())


@cases
@given(random_cases(), st.data())
def test_one_wrong_cell_is_refused(case, data):
    """Whatever cell says another scale: its own patch, or the one it claims, is then incomplete or out of range."""
    cell = data.draw(st.integers(0, case.scales.numel() - 1))
    wrong = case.scales.clone()
    wrong.view(-1)[cell] = data.draw(st.integers(-1, case.num_scales).filter(lambda s: s != case.scales.view(-1)[cell]))
    with pytest.raises(ValueError, match='the scale map holds'):
        TokenLayout.from_scales(wrong, *case[1:])


@settings(cases, max_examples=300)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 4), st.sampled_from((2, 3, 4)), st.integers(0, 2**31))
def test_patches_of_an_image_of_any_size(height_px, width_px, num_scales, patch_size, seed):
    """Merged patches are whole, aligned and inside the image; cells that no whole patch covers stay base patches."""
    image = torch.randint(2, (2, 3, height_px, width_px), generator=torch.Generator().manual_seed(seed)) * 255
    scores = patch_entropy(image, patch_size, num_scales)
    scales = select_scales(scores, [99.0 if scale % 2 else 0.9 for scale in range(1, num_scales)]).numpy()
    assert scales.shape[1:] == (-(-height_px // patch_size), -(-width_px // patch_size))
    for scale in range(1, num_scales):
        side = 2**scale
        batch, y, x = np.nonzero(scales == scale)
        for image, row, col in {*zip(batch.tolist(), (y >> scale).tolist(), (x >> scale).tolist(), strict=True)}:
            patch = scales[image, row * side:(row + 1) * side, col * side:(col + 1) * side]
            assert patch.shape == (side, side) and (patch == scale).all()
            assert (row + 1) * side * patch_size <= height_px and (col + 1) * side * patch_size <= width_px
