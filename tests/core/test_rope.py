import pytest
import torch

from apt_dense import TokenLayout
from apt_dense.core.eva02 import REFERENCE_CELLS
from apt_dense.core.rope import ANCHORS, Rotary, apply_rope, check_anchor, rope_table
from tests import oracle

from .test_embed import official_order
from .toys import random_scales


def eva02(head_dim):
    return Rotary.over_reference(head_dim, REFERENCE_CELLS)


MIXED = random_scales([0.3, 0.9], 8, 12, 3)
CASES = {  # scales, window_size, num_scales, with_cls_token
    'windows': (MIXED, 4, 3, False),
    'no_windows': (MIXED, 0, 3, False),
    'class_token': (MIXED, 0, 3, True),
    'window_of_three_roots': (random_scales([0.3, 0.8], 6, 18, 2), 6, 2, False),
    'all_fine': (torch.zeros_like(MIXED), 4, 3, False),
    'all_coarse': (torch.full_like(MIXED, 2), 4, 3, False),
    'empty_scale': (random_scales([0.3, 0.8], 8, 12, 3, skipped=(1,)), 4, 3, False),
}


@pytest.mark.parametrize('head_dim', [4, 8, 20])
@pytest.mark.parametrize('anchor', ANCHORS)
@pytest.mark.parametrize('windowed', [True, False])
@pytest.mark.parametrize('name', CASES)
def test_table_equals_one_token_at_a_time(name, windowed, anchor, head_dim):
    scales, window_size, num_scales, with_cls_token = CASES[name]
    layout = TokenLayout.from_scales(scales, window_size, num_scales, with_cls_token)
    table = rope_table(layout, eva02(head_dim), windowed, anchor)
    wanted = torch.stack([
        oracle.rope_turns(token, tuple(scales.shape[1:]), window_size if windowed else 0, head_dim, anchor)
        for token in oracle.token_list(scales, window_size, num_scales, with_cls_token)])
    assert table.dtype == torch.complex64
    torch.testing.assert_close(table, wanted.to(torch.complex64), atol=3e-6, rtol=0)


def test_worked_numbers():
    layout = TokenLayout.from_scales(torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1]]]).repeat(2, 2, 2), 4, 2)
    y, x = layout.cell_yx
    row = next(row for row in range(layout.num_tokens) if (y[row], x[row], layout.scales[row]) == (2, 6, 1))
    # Grid 4 x 8, head_dim 8: two pairs an axis, of frequencies 1 and 1/100.
    for windowed, anchor, wanted in ((False, 'corner', (8, .08, 12, .12)), (True, 'corner', (8, .08, 8, .08)),
                                     (False, 'center', (10, .10, 13, .13)), (True, 'center', (10, .10, 10, .10))):
        turns = rope_table(layout, eva02(8), windowed, anchor)[row].to(torch.complex128)
        angles = torch.tensor(wanted, dtype=torch.float64)
        torch.testing.assert_close(turns, torch.complex(angles.cos(), angles.sin()), atol=1e-5, rtol=0)


@pytest.mark.parametrize('anchor', ANCHORS)
def test_a_class_token_is_not_turned(anchor):
    layout = TokenLayout.from_scales(MIXED, 0, 3, num_prefix=1)
    table = rope_table(layout, eva02(8), False, anchor)
    rows = layout.scales < 0
    assert rows.sum() == 2 and (table[rows] == 1).all()
    plain = rope_table(layout.without_prefix, eva02(8), False, anchor)
    assert torch.equal(table[~rows], plain)


def test_apply_equals_one_token_at_a_time():
    x, angles = torch.randn(7, 3, 8), torch.randn(7, 4)
    turned = apply_rope(x, torch.complex(angles.cos(), angles.sin()))
    wanted = torch.stack([oracle.rotate(row, angle) for row, angle in zip(x, angles.tolist(), strict=True)])
    torch.testing.assert_close(turned, wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(turned.norm(dim=2), x.norm(dim=2))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_apply_turns_half_precision_in_float32(dtype):
    x, angles = torch.randn(7, 3, 8).to(dtype), torch.randn(7, 4)
    table = torch.complex(angles.cos(), angles.sin())
    turned = apply_rope(x, table)
    assert turned.dtype == torch.float32
    assert torch.equal(turned, apply_rope(x.float(), table))


@pytest.mark.parametrize('name', ['apt_embed_3scale', 'apt_embed_3scale_no64'])
def test_official_table(reference, name):
    """The official table is sin | cos, each angle twice, and has no rows for class tokens."""
    data = reference(name)
    wanted, codes = data['out/rope'], data['tok/output_mask']
    scales, ends = [], data['tok/cu_seqlens'].tolist()
    for begin, end in zip(ends, ends[1:], strict=False):
        scales.append(official_scales(codes[begin:end].tolist(), data, len(scales)))
    layout = TokenLayout.from_scales(torch.stack(scales), 0, 3, num_prefix=1)
    order = [row for row in official_order(layout) if layout.scales[row] >= 0]
    table = rope_table(layout, eva02(16), False)
    cos, sin = (part.repeat_interleave(2, 1)[order] for part in (table.real, table.imag))
    torch.testing.assert_close(torch.cat([sin, cos], 1), wanted, atol=1e-6, rtol=0)


def official_scales(codes: list[int], data: dict, image: int) -> torch.Tensor:
    """(8, 8): the scale map that the official scores give, checked against the number of tokens of each size."""
    scores = [data[f'map/{size}'][image:image + 1] for size in (16, 32, 64)]
    scales = oracle.select_scales(scores, data['meta']['thresholds'])[0]
    found = [int((scales == scale).sum()) >> 2 * scale for scale in range(3)]
    assert found == [codes.count(scale + 1) for scale in range(3)]
    return scales


def test_errors():
    layout = TokenLayout.from_scales(MIXED, 4, 3)
    with pytest.raises(ValueError, match="unknown rope_anchor 'middle': choose one of .*'corner', 'center'"):
        check_anchor('middle')
    with pytest.raises(ValueError, match="unknown rope_anchor 'top'"):
        rope_table(layout, eva02(8), True, 'top')
    for head_dim in (2, 6, 9):
        with pytest.raises(ValueError, match=f'head_dim={head_dim} is not a multiple of 4'):
            eva02(head_dim)


@pytest.mark.parametrize('halves', [False, True])
def test_gradient_of_a_turn(halves):
    x, angles = torch.randn(5, 2, 8, dtype=torch.float64, requires_grad=True), torch.randn(5, 4, dtype=torch.float64)
    table = torch.complex(angles.cos(), angles.sin())
    assert torch.autograd.gradcheck(lambda x: apply_rope(x, table, halves), x)


def test_halves_are_pairs_in_another_order():
    x, angles = torch.randn(7, 3, 8), torch.randn(7, 4)
    table = torch.complex(angles.cos(), angles.sin())
    neighbours = [0, 4, 1, 5, 2, 6, 3, 7]  # channel j beside channel j + 4
    wanted = apply_rope(x[..., neighbours], table)
    for one in (table, torch.view_as_real(table)):
        torch.testing.assert_close(apply_rope(x, one, halves=True)[..., neighbours], wanted)
