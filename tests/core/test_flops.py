"""The multiply-adds of the formula are those that torch's FLOP counter sees."""
import functools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from apt_dense import APTEVA02, TokenLayout
from apt_dense.core.flops import dense_layout, ideal_speedup, multiply_adds
from tests.core.toys import SPLIT, image_of, normalise, random_scales

ATEN = torch.ops.aten
# The counter knows the fused attention kernels of GPUs only; the CPU's takes the same shapes.
CPU_ATTENTION = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, **options: sdpa_flop_count(q, k, v),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda grad, q, k, v, *args, **options: sdpa_backward_flop_count(grad, q, k, v),
}
GEOMETRIES = {
    'windows': dict(window_size=8, global_block_indexes=(1,)),
    'full attention': dict(window_size=0, global_block_indexes=(0, 1, 2), with_cls_token=True, out_indices=(0, 2)),
    'windows only': dict(window_size=4, global_block_indexes=()),
}


@pytest.fixture(autouse=True)
def free_resampling(monkeypatch):
    """Position tables are resampled by small matrices; the formula leaves that out like the images' resampling."""

    def resample(table: torch.Tensor, height: int, width: int, antialias: bool = False) -> torch.Tensor:
        return table.mean((0, 1)).expand(height, width, -1)

    for module in ('embed', 'position'):
        monkeypatch.setattr(f'apt_dense.core.{module}.resample_table', resample)


def tiny(geometry: str, num_scales: int = 3, **arguments) -> APTEVA02:
    """Three blocks of 24 channels on 64 px with patches of 4, an MLP that is no whole multiple."""
    return APTEVA02(img_size=64, patch_size=4, embed_dims=24, depth=3, num_heads=2, pretrain_img_size=64,
                    num_scales=num_scales, thresholds=(SPLIT,) * (num_scales - 1), **GEOMETRIES[geometry], **arguments)


def batch(num_scales: int = 3, **options) -> torch.Tensor:
    """Two images of 64 x 96 px with very different numbers of tokens."""
    return normalise(image_of(random_scales([0.9, 0.4], 16, 24, num_scales, **options)))


def counted(function) -> int:
    """Multiply-adds that torch's counter sees."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        function()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize('geometry', GEOMETRIES)
@pytest.mark.parametrize('detail_branch', ['zero', 'none', 'residual'])
def test_forward(geometry, detail_branch):
    model, x = tiny(geometry, detail_branch=detail_branch).eval(), batch()
    measured = counted(lambda: model(x))
    layout = model.last_layout
    assert min(layout.scale_counts) > 0 and not layout.images.equal
    assert multiply_adds(model, layout).total == measured


@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_dense_twin(geometry):
    dense, apt, x = tiny(geometry, 1).eval(), tiny(geometry).eval(), batch()
    measured = counted(lambda: dense(x))
    layout = apt.make_layout(x)
    assert multiply_adds(dense, dense.last_layout).total == measured
    assert multiply_adds(apt, dense_layout(layout)).total == measured
    assert ideal_speedup(apt, layout) == measured / counted(lambda: apt(x)) > 1.2


@pytest.mark.parametrize('cells', [False, True])
@pytest.mark.parametrize('geometry', ['windows', 'full attention'])
def test_rows_that_count_by_their_sizes(geometry, cells):
    """What a reduction compares is padded, and not what the formula says; what it is with sizes and without, is."""
    models = [tiny(geometry, proportional_attention=cells, reduction=dict(
        type='ToMe', kept=0.8, proportional=proportional)).eval() for proportional in (False, True)]
    measured = [counted(functools.partial(model, batch())) for model in models]
    found = [multiply_adds(model, model.last_layout).total for model in models]
    assert found[1] - found[0] == measured[1] - measured[0]
    assert (found[0] < found[1]) == (not cells)


def test_a_scale_without_tokens():
    model, x = tiny('windows', 4).eval(), batch(4, skipped=(2,))
    measured = counted(lambda: model(x))
    assert model.last_layout.scale_counts[2] == 0
    assert multiply_adds(model, model.last_layout).total == measured


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('geometry', ['windows', 'full attention'])
@pytest.mark.parametrize(('num_scales', 'drop_path_rate'), [(1, 0.0), (1, 0.3), (3, 0.3)])
def test_train_step(geometry, with_cp, num_scales, drop_path_rate):
    model, x = tiny(geometry, num_scales, with_cp=with_cp, drop_path_rate=drop_path_rate).train(), batch()
    if num_scales > 1:  # the zero start would leave the convolution without a gradient, not without the products
        torch.nn.init.ones_(model.patch_embed.zero_mlp.weight)
    measured = counted(lambda: sum(output.sum() for output in model(x)).backward())
    assert multiply_adds(model, model.last_layout).train_step(with_cp) == measured


def test_official_sizes():
    """EVA-02-L at 1536 px: 9216 tokens, 24 blocks, 9 windows of 1024, counted by hand."""
    with torch.device('meta'):
        model = APTEVA02.from_preset('L')
    ops = multiply_adds(model, TokenLayout.dense(1, 96, 96, 32))
    assert ops.patches == 9216 * 768 * 1024 and ops.details == 0
    assert ops.linears == 24 * 9216 * (4 * 1024**2 + 3 * 1024 * 2730)
    assert ops.attention == 2 * 1024 * (8 * 9216**2 + 16 * 9 * 1024**2)
