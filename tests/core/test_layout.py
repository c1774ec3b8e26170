import pytest
import torch

from apt_dense import TokenLayout
from apt_dense.core.order import check_grid
from apt_dense.core.runs import Runs
from tests import oracle
from tests.oracle import Token

from .toys import random_scales

CASES = {  # scales, window_size, num_scales, with_cls_token
    'mixed': (random_scales([0.3, 0.9], 8, 12, 3), 4, 3, False),
    'three_images': (random_scales([0.9, 0.0, 0.5], 8, 12, 3), 4, 3, False),
    'no_windows': (random_scales([0.3, 0.9], 8, 12, 3), 0, 3, False),
    'class_token': (random_scales([0.3, 0.9], 8, 12, 3), 0, 3, True),
    'class_token_all_fine': (torch.zeros(2, 8, 12, dtype=torch.int64), 0, 3, True),
    'window_of_two_roots': (random_scales([0.4, 0.8], 16, 8, 3), 8, 3, False),
    'window_of_three_roots': (random_scales([0.3, 0.8], 12, 18, 2), 6, 2, False),
    'window_of_three_large_roots': (random_scales([0.3, 0.8], 12, 24, 3), 12, 3, False),
    'all_fine': (torch.zeros(2, 8, 12, dtype=torch.int64), 4, 3, False),
    'all_coarse': (torch.full((2, 8, 12), 2), 4, 3, False),
    'one_fine_one_coarse': (torch.tensor([0, 2])[:, None, None].expand(2, 8, 12), 4, 3, False),
    'empty_scale_1': (random_scales([0.3, 0.8], 8, 12, 3, skipped=(1,)), 4, 3, False),
    'empty_scale_2': (random_scales([0.3, 0.8], 8, 12, 3, skipped=(2,)), 4, 3, False),
    'four_scales': (random_scales([0.3, 0.8], 8, 16, 4), 8, 4, False),
    'one_scale': (torch.zeros(2, 6, 10, dtype=torch.int64), 2, 1, False),
    'odd_grid_one_scale': (torch.zeros(2, 5, 7, dtype=torch.int64), 0, 1, True),
}


def build(name: str) -> tuple[TokenLayout, list[Token]]:
    scales, window_size, num_scales, with_cls_token = CASES[name]
    layout = TokenLayout.from_scales(scales, window_size, num_scales, with_cls_token)
    return layout, oracle.token_list(scales, window_size, num_scales, with_cls_token)


@pytest.fixture(params=CASES)
def case(request):
    return build(request.param)


def rows_of(values: torch.Tensor) -> list:
    return [tuple(row) for row in values.tolist()]


def test_tokens_equal_the_oracles(case):
    layout, tokens = case
    y, x = layout.cell_yx
    image = layout.images.spread(torch.arange(layout.batch_size))
    found = rows_of(torch.stack([image, y, x, layout.scales], 1))
    # The cell of a class token means nothing.
    assert [row if row[3] >= 0 else (row[0], 0, 0, -1) for row in found] == \
        [(token.image, token.y, token.x, token.scale) for token in tokens]
    assert layout.num_tokens == len(tokens)
    assert layout.areas.tolist() == [len(token.cells()) for token in tokens]
    assert layout.scale_counts == tuple(sum(token.scale == scale for token in tokens)
                                        for scale in range(layout.num_scales))


@pytest.mark.parametrize('kind', ['windows', 'images'])
def test_runs_are_contiguous_and_equal_the_oracles(case, kind):
    layout, tokens = case
    runs = getattr(layout, kind)
    wanted = oracle.runs_of(tokens, windowed=kind == 'windows' and layout.window_size > 0)
    assert [index for run in wanted for index in run] == list(range(len(tokens)))
    assert runs.lengths == tuple(len(run) for run in wanted)
    assert runs.cu_seqlens.dtype == torch.int32
    assert runs.cu_seqlens.tolist() == [0, *(run[-1] + 1 for run in wanted)]
    assert type(runs.max_seqlen) is int and runs.max_seqlen == max(len(run) for run in wanted)


def test_tokens_by_scale(case):
    layout, tokens = case
    assert [rows.tolist() for rows in layout.tokens_by_scale] == \
        [[index for index, token in enumerate(tokens) if token.scale == scale] for scale in range(layout.num_scales)]


def test_each_cell_is_covered_exactly_once(case):
    layout, tokens = case
    index = torch.arange(layout.num_tokens, dtype=torch.float64)[:, None]
    covering = layout.expand(index)[:, 0]
    assert covering.shape == (layout.batch_size, layout.height, layout.width)
    counts = torch.bincount(covering.flatten().long(), minlength=len(tokens))
    assert counts.tolist() == [len(token.cells()) for token in tokens]
    assert int(layout.areas.sum()) == layout.num_cells == covering.numel()
    for number, token in enumerate(tokens):
        assert all(covering[token.image, y, x] == number for y, x in token.cells())


def test_pack_and_expand_equal_a_loop(case):
    layout, tokens = case
    cells = torch.randn(layout.batch_size, 5, layout.height, layout.width)
    packed = layout.pack(cells)
    assert torch.equal(packed, torch.stack([
        cells[token.image, :, token.y, token.x] if token.scale >= 0 else torch.zeros(5) for token in tokens]))
    expanded = layout.expand(packed)
    assert torch.equal(expanded, oracle.expand(packed, tokens, (layout.batch_size, layout.height, layout.width)))
    assert torch.equal(layout.pack(expanded), packed)


def test_order_of_the_cells_of_each_scale(case):
    """A token of scale s finds its patch of the dense grid of that scale in row ``start >> 2 * s``."""
    layout, _ = case
    layout = layout.without_prefix
    y, x = layout.cell_yx
    image = layout.images.spread(torch.arange(layout.batch_size))
    for scale, rows in enumerate(layout.tokens_by_scale):
        patches = torch.randn(layout.batch_size, layout.height >> scale, layout.width >> scale, 2, 3)
        found = layout.order(patches, scale)[layout.starts[rows] >> 2 * scale]
        assert torch.equal(found, patches[image[rows], y[rows] >> scale, x[rows] >> scale])


def test_expand_sums_gradients_over_the_cells(case):
    layout, tokens = case
    values = torch.randn(layout.num_tokens, 3, requires_grad=True)
    weight = torch.randn(layout.batch_size, 3, layout.height, layout.width)
    (layout.expand(values) * weight).sum().backward()
    wanted = torch.stack([sum((weight[token.image, :, y, x] for y, x in token.cells()), torch.zeros(3))
                          for token in tokens])
    torch.testing.assert_close(values.grad, wanted, atol=1e-5, rtol=0)


def test_an_image_does_not_depend_on_its_neighbours(case):
    layout, _ = case
    scales = layout.expand(layout.scales[:, None].float())[:, 0].long()
    for number, length in enumerate(layout.images.lengths):
        alone = TokenLayout.from_scales(scales[number:number + 1], layout.window_size, layout.num_scales,
                                        layout.num_prefix)
        begin = layout.images.cu_seqlens[number]
        own = slice(begin, begin + length)
        assert torch.equal(layout.scales[own], alone.scales)
        for together, single in zip(layout.cell_yx, alone.cell_yx, strict=True):
            assert torch.equal(together[own][alone.scales >= 0], single[alone.scales >= 0])


@pytest.mark.parametrize(('window_size', 'num_prefix'), [(0, 0), (0, 1), (0, 5), (4, 0), (4, 5)])
def test_dense_equals_scales_of_zero(window_size, num_prefix):
    dense = TokenLayout.dense(2, 8, 12, window_size, 3, num_prefix, torch.get_default_device())
    other = TokenLayout.from_scales(torch.zeros(2, 8, 12, dtype=torch.int64), window_size, 3, num_prefix)
    assert dense.is_dense and other.is_dense
    for key, value in vars(other).items():
        if isinstance(value, Runs):
            assert value.lengths == getattr(dense, key).lengths
            assert torch.equal(value.cu_seqlens, getattr(dense, key).cu_seqlens)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(dense, key))
        else:
            assert value == getattr(dense, key), key


def test_is_dense_only_without_coarse_tokens():
    assert [name for name in CASES if build(name)[0].is_dense] == \
        ['class_token_all_fine', 'all_fine', 'one_scale', 'odd_grid_one_scale']


def test_without_prefix():
    scales = CASES['class_token'][0]
    with_cls, plain = (TokenLayout.from_scales(scales, 0, 3, num_prefix) for num_prefix in (1, 0))
    assert with_cls.windows is with_cls.images
    assert plain.without_prefix is plain
    stripped = with_cls.without_prefix
    assert not stripped.num_prefix and stripped.images.lengths == plain.images.lengths
    assert stripped.num_tokens == with_cls.num_tokens - 2
    assert torch.equal(stripped.starts, plain.starts) and torch.equal(stripped.scales, plain.scales)


def test_a_prefix_among_windows_is_a_run_of_its_own():
    scales = random_scales([0.3, 0.9], 8, 12, 3)
    plain, layout = (TokenLayout.from_scales(scales, 4, 3, num_prefix) for num_prefix in (0, 5))
    runs, wanted = plain.windows.lengths, layout.windows.lengths
    assert len(runs) == 12 and wanted == (5, *runs[:6], 5, *runs[6:])
    assert layout.images.lengths == tuple(length + 5 for length in plain.images.lengths)
    stripped = layout.without_prefix
    assert stripped.windows.lengths == runs and stripped.images.lengths == plain.images.lengths
    assert torch.equal(stripped.starts, plain.starts)


def test_num_scales_defaults_to_the_largest_of_the_map():
    assert TokenLayout.from_scales(random_scales([0.3, 0.9], 8, 12, 3)).num_scales == 3
    assert TokenLayout.from_scales(torch.zeros(2, 5, 7, dtype=torch.int64)).num_scales == 1


def test_any_integer_type_and_strides():
    scales = CASES['mixed'][0]
    wanted = TokenLayout.from_scales(scales, 4, 3)
    for other in (scales.to(torch.uint8), scales.int(), scales.transpose(1, 2).contiguous().transpose(1, 2)):
        layout = TokenLayout.from_scales(other, 4, 3)
        assert torch.equal(layout.starts, wanted.starts) and torch.equal(layout.scales, wanted.scales)


def test_runs():
    runs = Runs.from_lengths((3, 1, 2), torch.get_default_device())
    assert runs.cu_seqlens.tolist() == [0, 3, 4, 6] and runs.cu_seqlens.dtype == torch.int32
    assert runs.max_seqlen == 3 and not runs.equal
    assert runs.spread(torch.tensor([[5., 6], [7, 8], [9, 10]])).tolist() == \
        [[5, 6], [5, 6], [5, 6], [7, 8], [9, 10], [9, 10]]
    assert Runs.from_lengths((4, 4), torch.get_default_device()).equal


@pytest.mark.parametrize('window_size', [0, 4])
def test_rows_of_the_patches_of_all_scales(window_size):
    """Each token's row is that of its own patch: order says which patch stands where."""
    layout = TokenLayout.from_scales(random_scales([0.3, 0.9], 8, 12, 3), window_size, 3)
    rows, cols = torch.meshgrid(torch.arange(8), torch.arange(12), indexing='ij')
    patches = []
    for scale in range(3):
        corners = torch.stack([torch.full_like(rows, scale), rows, cols], -1)[::2**scale, ::2**scale]
        patches.append(layout.order(corners[None], scale))
    wanted = torch.stack([layout.scales, *layout.cell_yx], 1)
    assert torch.equal(torch.cat(patches)[layout.position_index], wanted)
    prefixed = TokenLayout.from_scales(layout.expand(layout.scales[:, None].float())[:, 0].long(), layout.window_size,
                                       3, num_prefix=2)
    assert torch.equal(prefixed.position_index[prefixed.scales >= 0], layout.position_index)
    assert (prefixed.position_index[prefixed.scales < 0] == -1).all()


@pytest.mark.parametrize(('window_size', 'num_prefix'), [(0, 0), (0, 1), (0, 5), (4, 0)])
def test_runs_in_which_nothing_is_merged(window_size, num_prefix):
    """Their length is that of the dense twin, whatever the image: a plan for it is made once."""
    fine, coarse = torch.zeros(2, 8, 12, dtype=torch.long), torch.full((2, 8, 12), 2)
    dense = TokenLayout.dense(2, 8, 12, window_size, 3, num_prefix, torch.get_default_device())
    for scales, whole in ((fine, True), (coarse, False)):
        layout = TokenLayout.from_scales(scales, window_size, 3, num_prefix)
        for one in (layout, layout.without_prefix):
            assert one.windows.equal and one.images.equal
            assert (one.windows.whole, one.images.whole) == (whole, whole)
        assert layout.windows.whole_length == dense.windows.whole_length == dense.windows.max_seqlen
        assert layout.images.whole_length == dense.images.whole_length == dense.images.max_seqlen
    assert dense.windows.whole and dense.images.whole
    assert not Runs.from_lengths((4, 4), torch.get_default_device()).whole


@pytest.mark.parametrize('make', [
    lambda height, width, window, num: TokenLayout.dense(2, height, width, window, num),
    lambda height, width, window, num: TokenLayout.from_scales(torch.zeros(2, height, width).long(), window, num),
    check_grid,
])
def test_grid_errors(make):
    """... in cells, where nobody knows how large these are."""
    with pytest.raises(ValueError, match=r'grid 8x10 is not a multiple of window_size=4: pad the image to 8x12 cells$'):
        make(8, 10, 4, 2)
    with pytest.raises(ValueError, match='grid 6x8 is not a multiple of window_size=4'):
        make(6, 8, 4, 1)
    with pytest.raises(ValueError, match='grid 8x10 is not a multiple of the largest patch, 4 cells a side: pad the '
                                         'image to 8x12 cells'):
        make(8, 10, 0, 3)
    with pytest.raises(ValueError, match='window_size=6 is not a multiple of the largest patch, 4 cells a side with '
                                         'num_scales=3: use fewer scales or a window of 8'):
        make(12, 24, 6, 3)


def test_check_grid_names_a_size_that_fits():
    """For those who pad by themselves, and for those who have a config."""
    with pytest.raises(ValueError) as error:
        check_grid(96, 72, 32, 4, 14)
    assert str(error.value) == (
        'grid 96x72 is not a multiple of window_size=32: pad the image to 1344x1344 px, at the bottom and right, '
        'as PatchChooser.pad does (and set img_size to such a size); in a config of mmdetection by '
        'data_preprocessor.pad_size_divisor=448, of mmsegmentation by data_preprocessor.size and the crops')
    check_grid(96, 96, 32, 4, 14)
    with pytest.raises(ValueError, match='pad the image to 768x512 px,'):
        check_grid(95, 33, 32, 4, 8)
    check_grid(96, 64, 32, 4)
    check_grid(5, 7, 0, 1)


@pytest.mark.parametrize('side', [1, 2])
def test_incomplete_patch(side):
    scales = torch.zeros(2, 8, 12, dtype=torch.int64)
    scales[1, 4:6, 4:4 + side] = 1
    if side == 2:
        scales[1, 5, 5] = 0
    with pytest.raises(ValueError, match=r'incomplete patch: .* aligned to multiples of 2\*\*s cells'):
        TokenLayout.from_scales(scales, 4, 3)


def test_unaligned_and_overlapping_patches():
    scales = torch.zeros(2, 8, 12, dtype=torch.int64)
    scales[0, 1:3, 1:3] = 1  # a whole patch, but not on the quadtree
    with pytest.raises(ValueError, match='incomplete patch'):
        TokenLayout.from_scales(scales, 4, 3)
    scales = torch.full((2, 8, 12), 2)
    scales[1, :2, :2] = 1  # three quarters of a patch of scale 2 remain
    with pytest.raises(ValueError, match='incomplete patch'):
        TokenLayout.from_scales(scales, 4, 3)
    scales[1, :2, :2] = 2
    scales[1, 2:4, 2:4] = 0
    with pytest.raises(ValueError, match='incomplete patch'):
        TokenLayout.from_scales(scales, 4, 3)


@pytest.mark.parametrize('value', [-1, 3, 40])
def test_scale_out_of_range(value):
    scales = torch.zeros(2, 8, 12, dtype=torch.int64)
    scales[1, 7, 11] = value
    with pytest.raises(ValueError, match=r'holds a scale outside 0\.\.2'):
        TokenLayout.from_scales(scales, 4, 3)


@pytest.mark.parametrize('scales', [torch.zeros(8, 12).long(), torch.zeros(2, 8, 12), torch.zeros(0, 8, 12).long(),
                                    torch.zeros(1, 2, 8, 12).long()])
def test_bad_scale_maps(scales):
    with pytest.raises(ValueError, match=r'scales is torch\..* of shape \(.*\), wanted integers \(B, H, W\)'):
        TokenLayout.from_scales(scales, 4, 3)
