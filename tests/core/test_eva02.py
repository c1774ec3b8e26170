"""The backbone's own behaviour; test_eva02_parity.py compares it with the oracle and the official code."""
import copy
import functools
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from apt_dense import APTEVA02, TokenLayout
from apt_dense.core.block import Block, BlockTokens, _compiled_parts
from apt_dense.core.embed import DETAIL_BRANCHES
from apt_dense.core.eva02 import PRESETS, EVA02Attention
from apt_dense.core.layers import DropPath, SwiGLU, add_branch, draw_drop_path
from apt_dense.core.runs import Runs
from apt_dense.core.scorers import _compiled_scorer

from .toys import SPLIT, image_of, normalise, random_scales, scales_of, toy_model

TOY = {'patch_size': 4, 'embed_dims': 16, 'depth': 3, 'num_heads': 2, 'pretrain_img_size': 20, 'img_size': (32, 48),
       'window_size': 4, 'global_block_indexes': (1,), 'num_scales': 3, 'thresholds': (SPLIT, SPLIT)}
CLASS_TOKEN = {**TOY, 'window_size': 0, 'global_block_indexes': (), 'with_cls_token': True}
DENSE = {**TOY, 'num_scales': 1, 'thresholds': ()}
MIXED = random_scales([0.3, 0.9], 8, 12, 3)
MAPS = {
    'mixed': MIXED,
    'all_fine': torch.zeros_like(MIXED),
    'all_coarse': torch.full_like(MIXED, 2),
    'empty_scale_0': random_scales([0.4, 0.7], 4, 6, 2).repeat_interleave(2, 1).repeat_interleave(2, 2) + 1,
    'empty_scale_1': random_scales([0.3, 0.8], 8, 12, 3, skipped=(1,)),
    'empty_scale_2': random_scales([0.3, 0.8], 8, 12, 3, skipped=(2,)),
}


# --- Modes that must agree ---


@pytest.mark.parametrize('settings', [TOY, CLASS_TOKEN], ids=['windows', 'class_token'])
@torch.no_grad()
def test_thresholds_of_minus_one_equal_the_dense_model(settings):
    adaptive = toy_model(**{**settings, 'thresholds': (-1, -1)})
    dense = toy_model(**{**settings, 'num_scales': 1, 'thresholds': ()})
    dense.load_state_dict({key: value for key, value in adaptive.state_dict().items() if key in dense.state_dict()})
    x = normalise(image_of(MAPS['all_coarse']))
    torch.testing.assert_close(adaptive(x), dense(x), atol=1e-5, rtol=0)
    assert adaptive.last_layout.is_dense and dense.last_layout.is_dense


@torch.no_grad()
def test_zero_branch_equals_no_branch_at_step_0():
    zero = APTEVA02(**TOY).eval()
    none = APTEVA02(**{**TOY, 'detail_branch': 'none'}).eval()
    missing, unexpected = none.load_state_dict(zero.state_dict(), strict=False)
    assert not missing and all(key.startswith(('patch_embed.conv_down', 'patch_embed.zero_mlp')) for key in unexpected)
    x = normalise(image_of(MIXED))
    assert torch.equal(zero(x)[0], none(x)[0])
    assert min(zero.last_layout.scale_counts) > 0


@pytest.mark.parametrize('settings', [TOY, CLASS_TOKEN, DENSE], ids=['windows', 'class_token', 'dense'])
@torch.no_grad()
def test_an_image_does_not_depend_on_its_neighbours(settings):
    model = toy_model(**settings)
    scales = torch.cat([MIXED, MAPS['all_coarse'][:1], MAPS['all_fine'][:1]])
    x = normalise(image_of(scales))
    together = model(x)[0]
    order = [2, 0, 3, 1]
    torch.testing.assert_close(model(x[order])[0], together[order], atol=1e-5, rtol=0)
    for number in range(4):
        torch.testing.assert_close(model(x[number:number + 1])[0], together[number:number + 1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_out_indices():
    x = normalise(image_of(MIXED))
    every = toy_model(**{**TOY, 'out_indices': (0, 1, 2)})(x)
    assert [tuple(output.shape) for output in every] == [(2, 16, 8, 12)] * 3
    for indexes in ((1,), (0, 2), (-1,), (0, -1), (-3, -2)):
        outputs = toy_model(**{**TOY, 'out_indices': indexes})(x)
        assert len(outputs) == len(indexes)
        for index, output in zip(indexes, outputs, strict=True):
            assert torch.equal(output, every[index])


@pytest.mark.parametrize('reduction', [None, dict(type='ToMe', kept=0.8)])
def test_no_block_after_the_last_output_runs(reduction):
    model, ran = toy_model(**{**TOY, 'out_indices': (1,)}, reduction=reduction), []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    model(torch.randn(2, 3, 64, 128))
    assert ran == [0, 1]


@torch.no_grad()
def test_inputs_of_other_sizes_than_img_size():
    model = toy_model(**TOY)
    for height, width in ((4, 8), (12, 8), (16, 20)):
        scales = random_scales([0.3, 0.9], height, width, 3)
        (output,) = model(normalise(image_of(scales)))
        assert output.shape == (2, 16, height, width)
        assert torch.equal(scales_of(model.last_layout), scales)


@torch.no_grad()
def test_each_patch_has_one_value_and_patches_differ():
    (output,) = toy_model(**TOY)(normalise(image_of(MIXED)))
    layout = TokenLayout.from_scales(MIXED, 4, 3)
    tokens = layout.pack(output)
    assert torch.equal(layout.expand(tokens), output)
    assert torch.unique(tokens, dim=0).shape[0] == layout.num_tokens


def test_a_model_can_be_copied_after_a_training_step():
    model = toy_model(**TOY).train()
    x = normalise(image_of(MIXED))
    model(x)[0].sum().backward()
    torch.testing.assert_close(copy.deepcopy(model).eval()(x), model.eval()(x))


def test_inference_mode():
    model, x = toy_model(**TOY), normalise(image_of(MIXED))
    with torch.inference_mode():
        fast = model(x)
    torch.testing.assert_close(fast, model(x))


# --- Training ---


@pytest.mark.parametrize('name', MAPS)
@pytest.mark.parametrize('branch', DETAIL_BRANCHES)
@pytest.mark.parametrize('settings', [TOY, CLASS_TOKEN], ids=['windows', 'class_token'])
def test_every_parameter_gets_a_finite_gradient(settings, branch, name):
    model = toy_model(**{**settings, 'detail_branch': branch}).train()
    model(normalise(image_of(MAPS[name])))[0].pow(2).sum().backward()
    assert torch.equal(scales_of(model.last_layout.without_prefix), MAPS[name])
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        if (parameter.grad == 0).all():  # only without coarse tokens, or if each window holds a single token
            parts = {'all_fine': ('conv_down.', 'zero_mlp.'), 'all_coarse': ('q_proj.', 'k_proj.', 'q_bias')}
            assert any(part in key for part in parts.get(name, ())), key


def test_drop_path_draws_once_an_image():
    lengths = tuple(1 + number % 3 for number in range(4000))
    images = Runs.from_lengths(lengths, torch.get_default_device())
    drawn = draw_drop_path([DropPath(0.3), DropPath(0.0), DropPath(0.6), DropPath(0.9).eval()], images, torch.float64)
    assert drawn[1] == drawn[3] == (None, None)
    values = []
    for block, rate in ((0, 0.3), (2, 0.6)):
        for factor in drawn[block]:
            assert factor.shape == (sum(lengths), 1) and factor.dtype == torch.float64
            of_images = [part.unique().tolist() for part in factor.split(lengths)]
            assert all(len(found) == 1 for found in of_images)
            values.append(torch.tensor(of_images))
            assert sorted(set(values[-1].flatten().tolist())) == [0, pytest.approx(1 / (1 - rate))]
            assert values[-1].mean().item() == pytest.approx(1, abs=0.1)  # 5 sigma
    for number, one in enumerate(values):  # branches and blocks are drawn apart
        assert all(0.3 < ((one > 0) == (other > 0)).float().mean() < 0.7 for other in values[number + 1:])


def test_drop_path_draws_nothing_in_eval_mode_and_at_rate_0():
    images, before = Runs.from_lengths((2, 3), torch.get_default_device()), torch.get_rng_state()
    assert draw_drop_path([DropPath(0.9).eval(), DropPath(0.0)], images, torch.float32) == [(None, None)] * 2
    assert torch.equal(torch.get_rng_state(), before)


def test_block_draws_for_each_residual_branch_and_by_image_not_by_window():
    block = Block(EVA02Attention(8, 2), SwiGLU(8, 16), 0.5).train()
    with torch.no_grad():  # the branches add f * e0 and f * e1
        for index, layer in enumerate((block.attn.proj, block.mlp.w3)):
            layer.weight.zero_()
            layer.bias.copy_(torch.eye(8)[index])
    images = Runs.from_lengths((4, 6) * 50, torch.get_default_device())
    windows = Runs.from_lengths((2,) * 250, torch.get_default_device())
    x = torch.randn(500, 8)
    table = torch.ones(500, 2, dtype=torch.complex64)
    factors = draw_drop_path([block.drop_path], images, x.dtype)[0]
    added = (block(x, BlockTokens(windows, table, factors)) - x).detach()
    torch.testing.assert_close(added[:, 2:], torch.zeros(500, 6))
    drawn = [part[:, :2].round(decimals=4).unique(dim=0).tolist() for part in added.split(images.lengths)]
    assert all(len(rows) == 1 for rows in drawn)
    assert {tuple(row) for rows in drawn for row in rows} == {(0, 0), (0, 2), (2, 0), (2, 2)}


def test_gradient_of_a_dropped_branch():
    torch.manual_seed(0)
    x, branch = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    factor = torch.tensor([[0.0], [2.0], [2.0], [0.0]])
    assert torch.autograd.gradcheck(lambda x, branch: add_branch(x, branch, factor), (x, branch))


@pytest.mark.parametrize('rate', [-0.1, 1.0, 2])
def test_a_drop_path_rate_that_leaves_nothing(rate):
    with pytest.raises(ValueError, match=f'drop_path_rate={rate} must be at least 0 and less than 1'):
        APTEVA02(**TOY, drop_path_rate=rate)


def test_drop_path_rates_grow_linearly():
    model = APTEVA02(**{**TOY, 'depth': 5, 'drop_path_rate': 0.4})
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert APTEVA02(**{**TOY, 'depth': 1, 'global_block_indexes': (), 'drop_path_rate': 0.4}).blocks[0].drop_path.rate \
        == 0


@pytest.mark.parametrize('settings', [TOY, CLASS_TOKEN], ids=['windows', 'class_token'])
def test_recomputing_activations_changes_nothing(settings):
    results = []
    for with_cp in (False, True):
        model = toy_model(**{**settings, 'with_cp': with_cp, 'drop_path_rate': 0.5, 'out_indices': (0, -1)}).train()
        calls = [0] * 3
        for index, block in enumerate(model.blocks):
            block.norm1.register_forward_hook(
                lambda *_, calls=calls, index=index: calls.__setitem__(index, calls[index] + 1))
        torch.manual_seed(3)
        outputs = model(normalise(image_of(MIXED)))
        sum(output.pow(2).sum() for output in outputs).backward()
        assert calls == [2 if with_cp else 1] * 3
        results.append((outputs, {key: parameter.grad for key, parameter in model.named_parameters()}))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


def test_no_recomputation_without_gradients():
    x = normalise(image_of(MIXED))
    with torch.no_grad():
        torch.testing.assert_close(toy_model(**{**TOY, 'with_cp': True})(x), toy_model(**TOY)(x))


# --- Precision, and the image that is scored ---


def graded_image() -> torch.Tensor:
    """uint8 (2, 3, 32, 48): each patch has a few neighbouring grey levels, so that merging two changes its entropy."""
    levels = torch.arange(96).view(1, 1, 8, 12) * 5 // 2
    levels = levels.repeat_interleave(4, 2).repeat_interleave(4, 3)
    spread = torch.tensor([6, 12]).view(2, 1, 1, 1)
    return (levels + torch.rand(2, 1, 32, 48) * spread).expand(2, 3, 32, 48).to(torch.uint8)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_model_of_another_precision(dtype):
    model, x = toy_model(**TOY), normalise(image_of(MIXED))
    wanted = model(x)[0]
    (output,) = model.to(dtype)(x.to(dtype))
    assert output.dtype == dtype and output.isfinite().all()
    assert torch.equal(scales_of(model.last_layout), MIXED)
    error = (output - wanted).double().norm() / wanted.double().norm()
    assert error < {torch.float64: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]


@pytest.mark.parametrize('settings', [TOY, CLASS_TOKEN, DENSE], ids=['windows', 'class_token', 'dense'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_autocast(dtype, settings):
    model, x = toy_model(**settings), normalise(image_of(MIXED))
    wanted, layout = model(x)[0], model.last_layout
    for given in (x, x.to(dtype)):
        with torch.autocast(torch.get_default_device().type, dtype):
            (output,) = model(given)
        assert output.isfinite().all()
        assert torch.equal(model.last_layout.scales, layout.scales)
        assert torch.equal(model.last_layout.starts, layout.starts)
        assert (output - wanted).norm() < 0.05 * wanted.norm()


def test_gradients_under_autocast():
    model, x = toy_model(**{**TOY, 'with_cp': True}).train(), normalise(image_of(MIXED))
    model(x)[0].pow(2).sum().backward()
    wanted = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        model(x)[0].float().pow(2).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), key
        assert (parameter.grad - wanted[key]).norm() < 0.2 * wanted[key].norm(), key


@pytest.mark.parametrize('input_dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('model_dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_the_scored_image_is_the_raw_one(model_dtype, input_dtype):
    """All 256 levels of each channel come back exactly from the normalised input, in every precision."""
    model = APTEVA02(**TOY).to(model_dtype)
    scored, scorer = [], model.chooser.scorer
    model.chooser.scorer = lambda image, *sizes, **options: scored.append(image) or scorer(image, *sizes, **options)
    levels = torch.arange(256).repeat(2).view(1, 1, 16, 32)
    image = torch.cat([levels, 255 - levels]).expand(2, 3, 16, 32).to(torch.uint8)
    model.make_layout(normalise(image).to(input_dtype))
    assert torch.equal(scored[0], image.float())


@torch.no_grad()
def test_fractions_of_grey_levels_are_scored_too():
    """An image that was resized in floating point: a bin of the entropy is half a level, 1/1024 is enough."""
    model = APTEVA02(**TOY)
    scored, scorer = [], model.chooser.scorer
    model.chooser.scorer = lambda image, *sizes, **options: scored.append(image) or scorer(image, *sizes, **options)
    image = 255 * torch.rand(2, 3, 32, 48)
    model.make_layout(normalise(image))
    torch.testing.assert_close(scored[0], image, atol=1e-3, rtol=0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_scores_of_the_input_are_those_of_the_raw_image(dtype):
    image, model = graded_image(), APTEVA02(**TOY)
    scores = model.chooser.scorer(image, 8, 2)
    model.thresholds = tuple(float(score.median()) for score in scores)
    wanted = model.make_layout(normalise(image))
    assert min(wanted.scale_counts) > 0 and not wanted.images.equal
    layout = model.to(dtype).make_layout(normalise(image).to(dtype))
    assert torch.equal(layout.scales, wanted.scales) and torch.equal(layout.starts, wanted.starts)


# --- Sizes ---


def backbone_parameters(dims: int, depth: int) -> int:
    """By hand: patches of 16 px, a table of 14 x 14 + 1, hidden = int(dims * 8 / 3)."""
    hidden = int(dims * 8 / 3)
    attention = 3 * dims * dims + 2 * dims + dims * dims + dims  # q, k, v; biases of q and v; projection
    mlp = 2 * (dims * hidden + hidden) + 2 * hidden + hidden * dims + dims  # w1, w2; LayerNorm; w3
    block = 2 * dims + attention + 2 * dims + mlp
    return depth * block + (14 * 14 + 1) * dims + 16 * 16 * 3 * dims + dims


@pytest.mark.parametrize(('name', 'dims', 'depth', 'published'), [
    ('Ti', 192, 12, None), ('S', 384, 12, None), ('B', 768, 12, 86e6), ('L', 1024, 24, 304e6)])
def test_number_of_parameters(name, dims, depth, published):
    with torch.device('meta'):
        dense = APTEVA02.from_preset(name)
        adaptive = APTEVA02.from_preset(name, num_scales=4, thresholds=(2, 2, 0.3))
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (dense, adaptive)]
    assert counts[0] == backbone_parameters(dims, depth)
    assert counts[1] - counts[0] == (4 * dims * dims + dims) + (dims * dims + dims)  # 2 x 2 convolution, ZeroMLP
    if published:
        assert counts[0] == pytest.approx(published, rel=0.01)


def test_presets():
    assert set(PRESETS) == {'Ti', 'S', 'B', 'L'}
    for name, depth, heads, drop_path, global_blocks in (
            ('Ti', 12, 3, 0.0, range(1, 12, 2)), ('S', 12, 6, 0.0, range(1, 12, 2)),
            ('B', 12, 12, 0.1, range(1, 12, 2)), ('L', 24, 16, 0.4, range(2, 24, 3))):
        with torch.device('meta'):
            model = APTEVA02.from_preset(name)
        assert (len(model.blocks), model.blocks[0].attn.num_heads, model.head_dim) == (depth, heads, 64)
        assert model.global_blocks == set(global_blocks) and model.window_size == 32
        assert model.blocks[-1].drop_path.rate == pytest.approx(drop_path)
    with torch.device('meta'):
        assert len(APTEVA02.from_preset('L', depth=3, global_block_indexes=(2,)).blocks) == 3
    with pytest.raises(ValueError, match=r"unknown preset 'XL': choose one of \['B', 'L', 'S', 'Ti'\]"):
        APTEVA02.from_preset('XL')


# --- Errors ---


@pytest.mark.parametrize(('arguments', 'match'), [
    ({'num_scales': 0}, 'num_scales=0 must be a whole number from 1 on'),
    ({'num_heads': 3}, 'embed_dims=16 over num_heads=3 gives no head of a multiple of 4 channels'),
    ({'num_heads': 8}, 'embed_dims=16 over num_heads=8 gives no head of a multiple of 4 channels'),
    ({'thresholds': (1,)}, r'got 1 thresholds \(1,\) for 3 scales: give 2, fine to coarse'),
    ({'thresholds': (1, 1, 1)}, 'got 3 thresholds .* for 3 scales: give 2'),
    ({'num_scales': 1}, 'got 2 thresholds .* for 1 scales: give 0'),
    ({'thresholds': (1, float('nan'))}, r'thresholds \(1, nan\) contain a NaN'),
    ({'rope_anchor': 'middle'}, "unknown rope_anchor 'middle': choose one of .*'corner', 'center'"),
    ({'attn_backend': 'xformers'}, "unknown attn_backend 'xformers': choose one of .*'sdpa'"),
    ({'scorer': 'edges'}, "unknown scorer 'edges': choose one of .*'entropy'"),
    ({'detail_branch': 'one'}, "unknown detail_branch 'one': choose one of .*'zero'"),
    ({'with_cls_token': True}, 'window_size=4 with a class token: set window_size=0'),
    ({'img_size': (32, 46)}, r'img_size=\(32, 46\) must be multiples of patch_size=4'),
    ({'pretrain_img_size': 21}, 'pretrain_img_size=21 must be multiples of patch_size=4'),
    ({'img_size': (32, 40)}, 'grid 8x10 is not a multiple of window_size=4: pad the image to 32x48 px, .*divisor=16'),
    ({'img_size': (32, 40), 'window_size': 0}, 'grid 8x10 is not a multiple of the largest patch, 4 cells a side'),
    ({'window_size': 6}, 'window_size=6 is not a multiple of the largest patch, 4 cells a side with num_scales=3'),
    ({'out_indices': (0, 3)}, r'out_indices holds \[3\], but depth=3'),
    ({'out_indices': (-4,)}, r'out_indices holds \[-4\], but depth=3'),
    ({'global_block_indexes': (1, 5, -7)}, r'global_block_indexes holds \[5, -7\], but depth=3'),
])
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        APTEVA02(**{**TOY, **arguments})


@pytest.mark.parametrize(('shape', 'match'), [
    ((3, 32, 48), r'input has shape \(3, 32, 48\), wanted \(B, 3, H, W\)'),
    ((2, 4, 32, 48), r'input has shape \(2, 4, 32, 48\), wanted \(B, 3, H, W\)'),
    ((2, 3, 32, 46), 'input is 32x46 px, wanted a multiple of patch_size=4: pad the image to 32x48 px, .*divisor=16'),
    ((0, 3, 32, 48), 'an empty batch, give it one image'),
    ((2, 3, 32, 40), 'grid 8x10 is not a multiple of window_size=4: pad the image to 32x48 px'),
])
@pytest.mark.parametrize('settings', [TOY, DENSE], ids=['adaptive', 'dense'])
def test_bad_inputs(settings, shape, match):
    with pytest.raises(ValueError, match=match):
        APTEVA02(**settings)(torch.zeros(shape))


@pytest.mark.parametrize('settings', [TOY, DENSE, CLASS_TOKEN], ids=['adaptive', 'dense', 'class_token'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_non_finite_pixels(settings, value):
    x = torch.zeros(3, 3, 32, 48)
    x[1, 2, 5, 6] = value
    with pytest.raises(ValueError, match=r'NaN or infinite pixels in image\(s\) \[1\] of the batch'):
        APTEVA02(**settings)(x)


def test_pixels_whose_sum_overflows_are_finite():
    x = normalise(image_of(MIXED))
    layout = APTEVA02(**TOY).make_layout(x + 1e33)
    assert layout.num_cells == APTEVA02(**DENSE).make_layout(x).num_cells


class Waits(TorchDispatchMode):
    """Counts the operations for which the host would wait for a GPU."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count = 0
        tolist = torch.Tensor.tolist
        monkeypatch.setattr(torch.Tensor, 'tolist', lambda tensor: self._one_more() or tolist(tensor))

    def _one_more(self):
        self.count += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.name()
        masks = name == 'aten::index.Tensor' and any(part is not None and part.dtype == torch.bool for part in args[1])
        unsized = name == 'aten::repeat_interleave.Tensor' and kwargs.get('output_size') is None
        if masks or unsized or name in {'aten::_local_scalar_dense', 'aten::is_nonzero', 'aten::nonzero',
                                        'aten::masked_select', 'aten::equal', 'aten::bincount'}:
            self._one_more()
        return function(*args, **kwargs)


@pytest.mark.own_device  # under a default device tolist() is seen twice
@pytest.mark.parametrize('settings', [TOY, DENSE, CLASS_TOKEN], ids=['adaptive', 'dense', 'class_token'])
def test_the_host_waits_once(settings, monkeypatch):
    """For the number of tokens, by which it also learns of bad pixels."""
    model, x = APTEVA02(**settings), normalise(image_of(MIXED))
    with torch.no_grad():
        model(x)  # makes constants, once in a process
        with Waits(monkeypatch) as waits:
            model(x)
    assert waits.count == 1


def test_a_backend_that_cannot_run_here():
    x = normalise(image_of(MIXED))
    model = toy_model(**{**TOY, 'attn_backend': 'torch_varlen'})
    with pytest.raises(ValueError, match="attn_backend='torch_varlen' needs float16 or bfloat16 tensors on a GPU"):
        model(x)


@torch.no_grad()
def test_without_window_blocks_there_are_no_windows():
    """A segmentor may name all blocks instead of setting window_size=0, with any image size and a class token."""
    settings = dict(img_size=(96, 160), embed_dims=16, depth=2, num_heads=2, with_cls_token=True, pretrain_img_size=64)
    named = APTEVA02(**settings, global_block_indexes=(0, 1)).eval()
    zero = APTEVA02(**settings, window_size=0, global_block_indexes=()).eval()
    zero.load_state_dict(named.state_dict())
    assert named.window_size == 0
    x = torch.randn(2, 3, 96, 160)
    assert torch.equal(named(x)[0], zero(x)[0])


# --- A budget of tokens ---

BUSY = random_scales([0.2, 0.95, 0.6], 8, 12, 3)


@torch.no_grad()
@pytest.mark.parametrize('settings', [TOY, CLASS_TOKEN], ids=['windows', 'class_token'])
def test_max_tokens_per_image(settings):
    x = normalise(image_of(BUSY))
    free = toy_model(**settings)
    free.make_layout(x)
    class_tokens = settings is CLASS_TOKEN
    counts = [length - class_tokens for length in free.make_layout(x).images.lengths]
    budget = sorted(counts)[1]
    model = toy_model(**settings, max_tokens=budget)
    model(x)
    kept = [length - class_tokens for length in model.last_layout.images.lengths]
    assert max(kept) <= budget < max(counts) and model.chooser.last_num_raised == 1
    assert all(after == before for after, before in zip(kept, counts, strict=True) if before <= budget)
    again = model.make_layout(x)
    assert torch.equal(again.scales, model.last_layout.scales)
    model(x[counts.index(min(counts))][None])
    assert model.chooser.last_num_raised == 0


@torch.no_grad()
def test_max_tokens_per_batch():
    x = normalise(image_of(BUSY))
    counts = toy_model(**TOY).make_layout(x).images.lengths
    budget = sum(counts) - 15
    model = toy_model(**TOY, max_tokens=budget, max_tokens_per='batch')
    kept = model.make_layout(x).images.lengths
    assert sum(kept) <= budget and kept[0] == counts[0] == min(counts)


@pytest.mark.parametrize(('settings', 'message'), [
    ({'max_tokens': 0}, 'max_tokens=0 must be a whole number from 1 on, or None'),
    ({'max_tokens': 10, 'max_tokens_per': 'window'}, "unknown max_tokens_per 'window': choose one of"),
    ({'max_tokens': 10, 'num_scales': 1, 'thresholds': ()}, 'set num_scales > 1 and finite thresholds'),
    ({'max_tokens': 10, 'thresholds': (1.0, -float('inf'))}, 'set num_scales > 1 and finite thresholds'),
])
def test_a_wrong_budget(settings, message):
    with pytest.raises(ValueError, match=message):
        APTEVA02(**{**TOY, **settings})


# --- Determinism ---


@pytest.mark.parametrize('settings', [TOY, CLASS_TOKEN], ids=['windows', 'class_token'])
def test_deterministic_algorithms(settings):
    """torch raises for an operation that has no deterministic version; two runs are equal to the bit."""
    model, x = toy_model(**settings, max_tokens=30).train(), normalise(image_of(MIXED))
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(2):
            outputs = model(x)
            gradients = torch.autograd.grad(sum(output.square().sum() for output in outputs), model.parameters())
            runs.append((*outputs, *gradients))
    finally:
        torch.use_deterministic_algorithms(False)
    assert model.chooser.last_num_raised
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


OPTIONS = {'pad_mlp': True, 'keep_casts': True}


def clear_compiled():
    """Forget what torch.compile has returned."""
    _compiled_parts.cache_clear()
    _compiled_scorer.cache_clear()


@pytest.fixture
def compile_with(monkeypatch):
    """Choose the compiler behind torch.compile: 'aot_eager' traces as the real one does, and is quick."""
    def choose(backend):
        torch.compiler.reset()
        clear_compiled()
        monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend=backend))
    yield choose
    torch.compiler.set_stance('default')
    torch.compiler.reset()
    clear_compiled()


@pytest.mark.parametrize(('settings', 'mode'), [
    (TOY, 'eval'), (TOY, 'bfloat16'), (TOY, 'checkpointing'), ({**TOY, **OPTIONS}, 'train'),
    (CLASS_TOKEN, 'train'), (DENSE, 'eval'), ({**TOY, 'proportional_attention': True}, 'train'),
    ({**TOY, 'proportional_attention': True}, 'bfloat16')])
def test_compiled_equals_eager(settings, mode, compile_with):
    """Outputs and gradients; and images with other numbers of tokens do not compile again."""
    compile_with('aot_eager')
    settings = {**settings, 'drop_path_rate': 0.3, 'with_cp': mode == 'checkpointing'}
    dtype = torch.float32 if mode == 'bfloat16' else torch.float64
    eager, compiled = (toy_model(**settings, compiled=compiled).train(mode != 'eval').to(dtype)
                       for compiled in (False, True))
    for probabilities in ([0.3, 0.9], [0.9, 0.9], [0.1, 0.5], [0.5, 0.2]):
        x, results = normalise(image_of(random_scales(probabilities, 8, 12, 3))).to(dtype), []
        for model in (eager, compiled):
            model.zero_grad()
            torch.manual_seed(0)  # drop path
            with torch.autocast(torch.get_default_device().type, torch.bfloat16, enabled=mode == 'bfloat16'):
                outputs = model(x)
            outputs[0].square().sum().backward()
            results.append([*outputs, *(parameter.grad for parameter in model.parameters())])
        tolerance = {'rtol': 0.05, 'atol': 0.05} if mode == 'bfloat16' else {}
        torch.testing.assert_close(results[1], results[0], **tolerance)
        torch.compiler.set_stance('fail_on_recompile')


GRADIENT_MODES = {'inference': torch.inference_mode, 'no_grad': torch.no_grad, 'eval': torch.enable_grad,
                  'train': torch.enable_grad}


def layout_of(number: int) -> TokenLayout:
    """Two images of 16 x 24 cells; each number has another number of tokens."""
    roots = torch.full((2, 24), 2)
    fine, middle = divmod(number, 4)
    roots[0, :fine], roots[0, fine:fine + middle] = 0, 1
    scales = roots.view(2, 4, 6).repeat_interleave(4, 1).repeat_interleave(4, 2)
    return TokenLayout.from_scales(scales, 4, 3)


@pytest.mark.own_device  # a default device is one more thing that the compiler looks at
def test_no_number_of_tokens_compiles_again(compile_with):
    """In no mode, of which a process may use all; and no part falls back to Python."""
    compile_with('eager')
    torch._dynamo.utils.counters.clear()
    graphs = torch._dynamo.utils.counters['stats']
    model = toy_model(**{**TOY, 'depth': 2, 'img_size': (64, 96), 'drop_path_rate': 0.3}, compiled=True)
    x = torch.randn(2, 3, 64, 96)
    assert len({layout_of(number).num_tokens for number in range(50)}) == 50
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):  # else it warns, and compiles no more
        for dtype in (None, torch.bfloat16):
            for mode, gradients in GRADIENT_MODES.items():
                model.train(mode == 'train')
                for number in range(50):
                    with gradients(), torch.autocast(torch.get_default_device().type, dtype, enabled=dtype is not None):
                        output = model.forward_layout(x, layout_of(number))[0]
                    if number in (0, 1) and output.requires_grad:
                        output.float().sum().backward()
                    if number == 1:
                        compiled = graphs['unique_graphs']
                assert graphs['unique_graphs'] == compiled, (dtype, mode)
    # In each precision: the first part without gradients by inference_mode and no_grad, and with them; the second part
    # more often, for attention's result is a view or none, and drop path draws or does not.
    assert compiled <= 2 * (3 + 9)
    assert not torch._dynamo.utils.counters['graph_break']


def test_compiled_to_machine_code_equals_eager(compile_with):
    compile_with('inductor')
    eager, compiled = (toy_model(**TOY, compiled=compiled).eval() for compiled in (False, True))
    for scales in (MIXED, random_scales([0.5, 0.2], 8, 12, 3)):
        x = normalise(image_of(scales))
        with torch.inference_mode():
            torch.testing.assert_close(compiled(x), eager(x))
        assert compiled.last_layout.images.lengths == eager.last_layout.images.lengths


@pytest.mark.parametrize('make_copy', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_compiled_model_has_weights_of_its_own(make_copy, compile_with):
    compile_with('aot_eager')
    model, x = toy_model(**TOY, compiled=True).eval(), normalise(image_of(MIXED))
    with torch.no_grad():
        wanted = model(x)[0]
        twin = make_copy(model)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(twin(x)[0], wanted) and not torch.equal(model(x)[0], wanted)
