"""Attention that counts a merged patch by its cells."""
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from apt_dense import APTEVA02, APTSAM3, APTDINOv3, APTViT, TokenLayout
from apt_dense.core.attention import size_channels
from apt_dense.core.block import BlockTokens
from apt_dense.core.block_loop import rope_tables
from apt_dense.core.dropping import class_attention
from apt_dense.core.export import FixedEncoder
from apt_dense.core.flops import dense_layout, multiply_adds
from apt_dense.core.graphs import PackedInputs
from apt_dense.core.reduced import reduced_blocks
from apt_dense.core.reduction import Attended
from apt_dense.core.runs import Padded, Runs
from apt_dense.core.vit import PackedViT
from tests.core.toys import image_of, normalise, random_scales, randomise, toy_model

TOY = dict(img_size=32, patch_size=4, embed_dims=16, depth=3, num_heads=2, window_size=4, global_block_indexes=(1,),
           pretrain_img_size=32, num_scales=3, thresholds=(1.5, 1.5))
WHOLE = dict(TOY, window_size=0, with_cls_token=True, global_block_indexes=())
MERGED, DENSE = random_scales([0.4, 0.7], 8, 8, 3), torch.zeros(2, 8, 8, dtype=torch.int64)


def repeated(values: torch.Tensor, runs: Runs, times: torch.Tensor) -> tuple[torch.Tensor, Runs]:
    lengths = [int(part.sum()) for part in times.split(runs.lengths)]
    return values.repeat_interleave(times, 0), Runs.from_lengths(tuple(lengths), values.device)


SMALL = dict(img_size=32, patch_size=4, embed_dims=32, depth=3, num_heads=2, num_scales=3, thresholds=(1.5, 1.5))
WINDOWED, TABLE = dict(window_size=4, global_block_indexes=(1,)), dict(pretrain_img_size=32)
FAMILIES = {
    'EVA-02, windows': (APTEVA02, TOY), 'EVA-02, class token': (APTEVA02, WHOLE),
    'EVA-02, padded MLP': (APTEVA02, {**SMALL, **WINDOWED, **TABLE, 'keep_casts': True, 'pad_mlp': True}),
    'DINOv3, registers': (APTDINOv3, dict(SMALL, num_registers=4)),
    'DINOv3, windows': (APTDINOv3, {**SMALL, **WINDOWED, 'num_registers': 4}),
    'DINOv3, mean of rotations': (APTDINOv3, dict(SMALL, rope_anchor='interpolated')),
    'ViT, scaled layers': (APTViT, {**SMALL, **TABLE, 'layer_scale': 1.0, 'pre_norm': True, 'num_registers': 2}),
    'ViT, heads of 7': (APTViT, {**SMALL, **TABLE, 'embed_dims': 14}),
    'SAM 3': (APTSAM3, {**SMALL, **WINDOWED, **TABLE})}


@pytest.mark.parametrize('name', FAMILIES)
@torch.no_grad()
def test_as_if_each_cell_had_its_patch_s_row(name):
    """A plain block over rows that stand there once for each cell; a class token and registers count once."""
    family, settings = FAMILIES[name]
    model = family(**settings, proportional_attention=True).eval()
    randomise(model)
    layout = TokenLayout.from_scales(MERGED, model.window_size, 3, model.num_prefix)
    found = model.embed(normalise(image_of(MERGED)), layout)
    times, ropes = layout.areas.clamp(min=1), rope_tables(model, layout, torch.float32)
    wanted, channels = repeated(found, layout.images, times)[0], size_channels(times.log(), torch.float32)
    for index, block in enumerate(model.blocks):
        local = bool(model.window_size) and index not in model.global_blocks
        runs, rope = (layout.windows, ropes[0]) if local else (layout.images, ropes[1])
        _, cells = repeated(times, runs, times)
        wanted = block(wanted, BlockTokens(cells, None if rope is None else rope.repeat_interleave(times, 0)))
        found = block(found, BlockTokens(runs, rope, size_channels=channels))
        torch.testing.assert_close(repeated(found, runs, times)[0], wanted, atol=1e-4, rtol=0)
    rows = model.block_rows(normalise(image_of(MERGED)), layout, frozenset([2]))[0]
    torch.testing.assert_close(rows, found)


@torch.no_grad()
def test_it_changes_what_is_merged_alone():
    plain, counted = toy_model(**TOY), toy_model(**TOY, proportional_attention=True)
    dense, merged = (normalise(image_of(scales)) for scales in (DENSE, MERGED))
    assert torch.equal(plain(dense)[0], counted(dense)[0])
    assert (plain(merged)[0] - counted(merged)[0]).abs().max() > 1e-2
    assert list(plain.state_dict()) == list(counted.state_dict())


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_gradients_and_recomputation(dtype):
    x, found = normalise(image_of(MERGED)).to(dtype), []
    for with_cp in (False, True):
        model = toy_model(**TOY, proportional_attention=True, with_cp=with_cp).to(dtype).train()
        model(x)[0].float().square().mean().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(gradient is not None and gradient.isfinite().all() for gradient in found[0])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize('settings', [TOY, WHOLE], ids=['windows', 'class_token'])
@torch.no_grad()
def test_padded_and_exported_rows(settings):
    """Buckets of tokens, as CUDA graphs have them, and the encoder of fixed shapes."""
    model = toy_model(**settings, proportional_attention=True)
    padded = toy_model(**settings, proportional_attention=True, graph_tokens=32)
    x = normalise(image_of(MERGED))
    torch.testing.assert_close(padded(x)[0], model(x)[0], atol=1e-5, rtol=0)
    layout = model.make_layout(x[:1])
    fixed = FixedEncoder(model, (32, 32), layout.num_tokens + 5)
    torch.testing.assert_close(fixed(x[:1], **fixed.inputs(layout))[0], model(x[:1])[0], atol=1e-5, rtol=0)


def test_multiply_adds():
    plain, counted = toy_model(**TOY), toy_model(**TOY, proportional_attention=True)
    layout = TokenLayout.from_scales(MERGED, 4, 3)
    before, after = multiply_adds(plain, layout), multiply_adds(counted, layout)
    assert after.attention == before.attention * (8 + 8) // 8  # channels of a head, and eight more
    assert after.total - before.total == after.attention - before.attention
    assert multiply_adds(plain, dense_layout(layout)) == multiply_adds(counted, dense_layout(layout))


REDUCTIONS = {'ToMe': (TOY, dict(kept=1.0)), 'ToMe, class token': (WHOLE, dict(kept=1.0)),
              'advanced': (WHOLE, dict(kept=1.0, proportional=False)), 'EViT': (WHOLE, dict(rates=1.0))}


@pytest.mark.parametrize('name', REDUCTIONS)
@torch.no_grad()
def test_rows_of_a_reduction_begin_with_their_cells(name):
    """One that leaves all rows is none."""
    settings, options = REDUCTIONS[name]
    x = normalise(image_of(MERGED))
    kind = 'ToMe' if name == 'advanced' else name.partition(',')[0]
    reduced = toy_model(**settings, proportional_attention=True, reduction=dict(type=kind, **options))
    plain = toy_model(**settings, proportional_attention=True)
    plain.load_state_dict({key: value for key, value in reduced.state_dict().items() if 'reduction' not in key})
    torch.testing.assert_close(reduced(x)[0], plain(x)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', ['ToMe', 'EViT'])
@torch.no_grad()
def test_sizes_follow_the_rows(name):
    """Merged rows hold the cells of both; those that stay where others go keep theirs."""
    model = toy_model(**WHOLE, proportional_attention=True, reduction=dict(
        type=name, **(dict(rates=0.7, fuse=False) if name == 'EViT' else dict(kept=0.8))))
    x = normalise(image_of(MERGED))
    layout = model.make_layout(x)
    sizes = layout.areas.clamp(min=1).float()
    inputs = PackedInputs(model.embed(x, layout), layout.windows, layout.images, *rope_tables(
        model, layout, torch.float32), size_channels(sizes.log(), torch.float32))
    for _, rows, state in reduced_blocks(model, inputs, layout, [(None, None)] * 3, False):
        assert len(state.sizes) == len(rows)
        if name == 'EViT':
            held = state._source if state._source is not None else torch.arange(len(rows))
            assert torch.equal(state.sizes[held[held >= 0]], sizes[held >= 0])
        else:
            assert state.sizes.sum().item() == pytest.approx(sizes.sum().item())
    assert len(rows) < layout.num_tokens


COMPOSED = [(name, proportional, counted) for name in ('ToMe', 'DTEM') for proportional in (True, False)
            for counted in (True, False) if (name, counted) != ('DTEM', True)]
COMPOSED += [('EViT', None, True), ('EViT', None, False), ('Random', None, True)]


@pytest.mark.parametrize('name, proportional, counted', COMPOSED)
@torch.no_grad()
def test_an_image_is_the_same_alone_and_beside_one_with_merged_patches(name, proportional, counted):
    options = dict(kept=0.8) if proportional is None else dict(kept=0.8, proportional=proportional)
    model = toy_model(**WHOLE, proportional_attention=counted, reduction=dict(
        type=name, **(dict(rates=0.7) if name == 'EViT' else options)))
    scales = MERGED.clone()
    scales[0] = 0
    both = normalise(image_of(scales))
    torch.testing.assert_close(model(both)[0][:1], model(both[:1])[0], atol=1e-5, rtol=0)


def test_blocks_of_another_class_are_refused():
    """They may not know of it, and would do nothing."""

    class Own(torch.nn.Module):
        attn = SimpleNamespace(head_dim=8)

    def build(**settings):
        return PackedViT(lambda rate: Own(), None, embed_dims=16, depth=2, table_cells=8, img_size=32, patch_size=4,
                         **settings)

    with pytest.raises(ValueError, match='proportional_attention=True and blocks of Own: only a Block is known to'):
        build(num_scales=2, thresholds=(1.0,), proportional_attention=True)
    build(num_scales=2, thresholds=(1.0,))


def test_dtem_and_cells_are_refused_together():
    with pytest.raises(ValueError, match="DTEM sorts rows by sizes that begin at one.*or take 'ToMe'"):
        toy_model(**WHOLE, proportional_attention=True, reduction=dict(type='DTEM', kept=0.8))
    toy_model(**{**WHOLE, 'num_scales': 1, 'thresholds': ()}, proportional_attention=True,
              reduction=dict(type='DTEM', kept=0.8))


def test_the_class_token_looks_at_rows_as_often_as_they_count():
    """EViT keeps what it attends to; with keys that are all alike, the sizes decide."""
    runs, sizes = Runs.from_lengths((4,), torch.get_default_device()), torch.tensor([1., 1., 16., 4.])
    nothing = torch.zeros(4, 2, 8)
    attended = Attended(nothing[:, 0], nothing[:, 0], nothing, nothing, nothing, sizes, runs, (1,))
    found = class_attention(attended, Padded(runs))
    torch.testing.assert_close(found[0, 1:], sizes[1:] / sizes.sum())
    alike = class_attention(replace(attended, sizes=None), Padded(runs))
    torch.testing.assert_close(alike[0, 1:], torch.full((3,), 0.25))
