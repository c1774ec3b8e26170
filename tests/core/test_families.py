"""The families against an encoder of loops: merged patches of all sizes, windows, rows before the patches."""
import pytest
import torch

from apt_dense import APTEVA02, APTSAM3, APTDINOv3, APTViT, PackedViT
from apt_dense.core import dinov3, plain_vit, sam3
from apt_dense.core.block_loop import rope_tables
from apt_dense.core.embed import ADDED_PARAMETERS
from apt_dense.core.flops import multiply_adds
from tests.locations import ROOT
from tests.oracle_families import oracle_tokens

from .toys import SPLIT, image_of, normalise, random_scales, randomise, scales_of

GRID = (8, 16)
MIXED = random_scales([0.4, 0.9], *GRID, 3)
MAPS = {'mixed': MIXED, 'all fine': torch.zeros_like(MIXED), 'all coarse': torch.full_like(MIXED, 2),
        'an empty scale': random_scales([0.4, 0.9], *GRID, 3, skipped=(1,))}
SIZES = dict(img_size=(32, 64), patch_size=4, embed_dims=16, depth=2, num_heads=2, num_scales=3,
             thresholds=(SPLIT, SPLIT))
CASES = {  # name: (class, family of the oracle, arguments, arguments of the oracle)
    'vit': (APTViT, 'vit', dict(pretrain_img_size=20), {}),
    'dinov2': (APTViT, 'dinov2', dict(pretrain_img_size=20, num_registers=4, layer_scale=1.0,
                                      resampling='bicubic_antialias'), {}),
    'swiglu': (APTViT, 'swiglu', dict(pretrain_img_size=20, mlp='swiglu', layer_scale=1.0), {}),
    'clip': (APTViT, 'clip', dict(pretrain_img_size=20, pre_norm=True, patch_bias=False, mlp='quick_gelu',
                                  norm_eps=1e-5), {}),
    'dinov3': (APTDINOv3, 'dinov3', {}, {}),
    'dinov3 center': (APTDINOv3, 'dinov3', dict(rope_anchor='center'), dict(anchor='center')),
    'dinov3 interpolated': (APTDINOv3, 'dinov3', dict(rope_anchor='interpolated'), dict(anchor='interpolated')),
    'dinov3 windows': (APTDINOv3, 'dinov3', dict(window_size=4, global_block_indexes=(1,)),
                       dict(window_size=4, global_blocks=(1,))),
    'sam3': (APTSAM3, 'sam3', dict(pretrain_img_size=12, window_size=4, global_block_indexes=(1,), rope_cells=4),
             dict(window_size=4, global_blocks=(1,), rope_cells=4))}


def build(name: str, **changes) -> PackedViT:
    family, _, arguments, _ = CASES[name]
    model = family(**{**SIZES, **arguments, **changes}).eval()
    randomise(model)
    return model


def image_for(model: PackedViT, scales: torch.Tensor) -> torch.Tensor:
    return normalise(image_of(scales), mean=model.chooser.img_mean, std=model.chooser.img_std)


def wanted(name: str, state: dict, x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    _, family, _, facts = CASES[name]
    return oracle_tokens(state, x, scales, family, patch_size=4, num_scales=3, depth=2, num_heads=2, **facts)


@pytest.mark.parametrize('scales', MAPS)
@pytest.mark.parametrize('name', CASES)
@torch.no_grad()
def test_tokens_equal_the_loops(name, scales):
    model, scales = build(name), MAPS[scales]
    x = image_for(model, scales)
    rows, layout = model.forward_tokens(x)
    assert torch.equal(scales_of(layout.without_prefix), scales)
    torch.testing.assert_close(rows, wanted(name, model.state_dict(), x, scales), atol=2e-5, rtol=0)
    torch.testing.assert_close(model(x)[0], layout.expand(rows))


@pytest.mark.parametrize('name', CASES)
@torch.no_grad()
def test_thresholds_that_merge_nothing_give_the_dense_model(name):
    model = build(name)
    dense = build(name, num_scales=1, thresholds=())
    dense.load_state_dict({key: value for key, value in model.state_dict().items() if key not in ADDED_PARAMETERS})
    model.thresholds = (-1, -1)
    x = image_for(model, MIXED)
    torch.testing.assert_close(model(x), dense(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', CASES)
@torch.no_grad()
def test_an_image_does_not_depend_on_its_neighbours(name):
    model = build(name)
    x = image_for(model, MIXED)
    rows, layout = model.forward_tokens(x)
    for image, own in zip(x.split(1), rows.split(layout.images.lengths), strict=True):
        torch.testing.assert_close(model.forward_tokens(image)[0], own, atol=1e-5, rtol=0)


@pytest.mark.parametrize('scales', ['mixed', 'all fine', 'all coarse'])
@pytest.mark.parametrize('name', CASES)
def test_gradients_equal_the_loops(name, scales):
    """Of every parameter, also of what an empty scale does not use."""
    model, scales = build(name).train(), MAPS[scales]
    x, parameters = image_for(model, scales), dict(model.named_parameters())
    rows, layout = model.forward_tokens(x)
    weight = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0), device='cpu').to(rows.device)
    found = torch.autograd.grad((rows * weight).sum(), list(parameters.values()))
    loss = (wanted(name, parameters, x, scales) * weight).sum()
    loops = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for key, own, want in zip(parameters, found, loops, strict=True):
        want = torch.zeros_like(own) if want is None else want
        assert (own - want).abs().max() <= 2e-4 * max(want.abs().max().item(), 1), key


@pytest.mark.parametrize('name', CASES)
def test_drop_path_drops_an_image_as_a_whole(name):
    """With a rate near 1 nearly every branch is dropped: an image's tokens are its embedding, or all are others."""
    model = build(name, drop_path_rate=0.9, final_norm=False) if name != 'sam3' else build(name, drop_path_rate=0.9)
    model.train()
    x = image_for(model, MIXED)
    torch.manual_seed(0)
    seen = set()
    for _ in range(20):
        with torch.no_grad():
            layout = model.make_layout(x)
            start, first = model.embed(x, layout), model.blocks[0].drop_path.rate
            rows = model.forward_tokens(x, layout)[0]
        assert first == 0
        block = model.blocks[0](start, _whole(model, layout))
        for own, base in zip(rows.split(layout.images.lengths), block.split(layout.images.lengths), strict=True):
            same = (own - base).abs().amax(1) < 1e-5
            assert same.all() or not same.any()
            seen.add(bool(same.all()))
    assert seen == {True, False}


def _whole(model: PackedViT, layout):
    """What block 0 is told."""
    from apt_dense.core.block import BlockTokens
    local, whole = rope_tables(model, layout, torch.float32)
    windowed = model.window_size > 0 and 0 not in model.global_blocks
    return BlockTokens(layout.windows, local) if windowed else BlockTokens(layout.images, whole)


def test_interpolated_turns_of_cells_that_agree_are_theirs():
    """A frequency so low that the cells of a patch turn alike: the merged token turns as they do, and no shorter."""
    from apt_dense import TokenLayout
    from apt_dense.core.rope import Rotary, rope_table
    layout = TokenLayout.from_scales(torch.ones(1, 4, 4, dtype=torch.long), 0, 2)
    slow = Rotary(8, theta=1e12, scale=1e-6)
    for anchor in ('corner', 'interpolated'):
        table = rope_table(layout, slow, False, anchor)
        torch.testing.assert_close(table, rope_table(layout, slow, False, 'center'), atol=1e-6, rtol=0)
    fast = rope_table(layout, Rotary(8, scale=20.0), False, 'interpolated')
    assert fast.abs().min() < 0.9 and fast.abs().max() <= 1 + 1e-6


@pytest.mark.parametrize('anchor', ['corner', 'center', 'interpolated'])
@torch.no_grad()
def test_positions_of_merged_patches(anchor):
    """By the table at the grid: its entry at the corner, the mean of four around the centre, or resampled to it."""
    model = build('vit', pos_anchor=anchor)
    table = model.position_table(*GRID)
    if anchor == 'corner':
        found = {1: table[2:4:2, 4:6:2], 2: table[4:5, 8:9]}
    elif anchor == 'center':
        found = {1: table[2:4, 4:6].mean((0, 1)), 2: table[5:7, 9:11].mean((0, 1))}
    else:
        return  # tests/core/test_embed.py
    from apt_dense.core.embed import position_maps
    maps = position_maps(table, 3, anchor)
    torch.testing.assert_close(maps[1][1, 2], found[1].flatten())
    torch.testing.assert_close(maps[2][1, 2], found[2].flatten())


@pytest.mark.parametrize(('family', 'presets', 'millions'), [
    (APTViT, plain_vit.PRESETS, {'mae_b': 86, 'mae_l': 303, 'mae_h': 631, 'deit_ti': 5.5, 'dinov2_s': 22,
                                 'dinov2_b': 86.6, 'dinov2_l': 304, 'dinov2_g': 1136, 'clip_l_336': 304}),
    (APTDINOv3, dinov3.PRESETS, {'S': 21.6, 'S+': 28.7, 'B': 85.7, 'L': 303, 'H+': 840.5, '7B': 6716}),
    (APTSAM3, sam3.PRESETS, {'sam3': 446})])
def test_published_sizes(family, presets, millions):
    for name in presets:
        with torch.device('meta'):
            model = family.from_preset(name)
        if name in millions:
            count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
            assert count == pytest.approx(millions[name], rel=0.01), name
    with pytest.raises(ValueError, match='unknown preset .XXL.: choose one of'):
        family.from_preset('XXL')


@pytest.mark.parametrize('name', CASES)
def test_layers_and_added_parameters(name):
    model = build(name)
    layers = {key: model.layer_of(key) for key, _ in model.named_parameters()}
    assert set(layers.values()) == {0, 1, 2} | ({3} if model.norm is not None else set())
    assert layers['patch_embed.proj.weight'] == 0 and layers['blocks.1.attn.q_proj.weight'] == 2
    assert sorted(model.added_parameters) == sorted(ADDED_PARAMETERS)
    for wrong, why in (('head.weight', 'has no layer'), ('blocks.2.norm1.weight', 'lies beyond num_layers=2')):
        with pytest.raises(ValueError, match=why):
            model.layer_of(wrong)
    layout = model.make_layout(image_for(model, MIXED))
    linears = 4 * 16 * 16 + sum(layer.weight.numel() for layer in model.blocks[0].mlp.modules()
                                if isinstance(layer, torch.nn.Linear))
    assert multiply_adds(model, layout).linears == 2 * layout.num_tokens * linears


@pytest.mark.parametrize(('family', 'arguments', 'message'), [
    (APTViT, dict(mlp='relu'), "unknown mlp 'relu': choose one of"),
    (APTViT, dict(resampling='nearest'), "unknown resampling 'nearest'"),
    (APTViT, dict(pos_anchor='middle'), "unknown pos_anchor 'middle'"),
    (APTViT, dict(prefix_positions=3), 'the table has 3 positions for the prefix, which has 1 rows'),
    (APTViT, dict(img_size=100), 'img_size=100 must be multiples of patch_size=16'),
    *((family, dict(img_size=size), 'img_size=.* must be multiples of patch_size=1[46], in whole pixels')
      for family in (APTViT, APTDINOv3, APTSAM3, APTEVA02) for size in (0, -1008, 1008.0, '1008', (1008,), None)),
    *((family, {name: 0}, f'{name}=0 must be a whole number from 1 on')
      for family in (APTViT, APTDINOv3, APTSAM3, APTEVA02) for name in ('patch_size', 'num_heads', 'embed_dims')),
    *((family, {name: -1}, f'{name}=-1 must be a whole number from 0 on')
      for family in (APTViT, APTDINOv3) for name in ('num_registers', 'prefix_positions')),
    (APTViT, dict(pretrain_img_size=0), 'pretrain_img_size=0 must be multiples of patch_size=16, in whole pixels'),
    (APTSAM3, dict(pretrain_img_size=336.0), 'pretrain_img_size=336.0 must be multiples of patch_size=14'),
    (APTDINOv3, dict(embed_dims=18, num_heads=3), 'no head of a multiple of 4 channels'),
    (APTDINOv3, dict(img_size=256, window_size=6, num_scales=3, thresholds=(1, 1)),
     'window_size=6 is not a multiple of the largest patch, 4 cells a side .* a window of 8'),
    (APTSAM3, dict(num_scales=5, thresholds=(1,) * 4), 'window_size=24 is not a multiple of the largest patch'),
    (APTEVA02, dict(window_size=32, with_cls_token=True), 'window_size=32 with a class token: set window_size=0')])
def test_bad_arguments(family, arguments, message):
    with pytest.raises(ValueError, match=message), torch.device('meta'):
        family(**arguments)
    with pytest.raises(TypeError, match='unexpected keyword argument .window.'):
        family(depth=1, window=3)


@pytest.mark.parametrize(('owner', 'shape', 'message'), [
    ('dinov3', (1, 3, 64, 32), 'height=16, wanted 8; width=8, wanted 16'),
    ('dinov3', (2, 3, 32, 64), 'batch_size=2, wanted 1'),
    ('dinov3 windows', (1, 3, 32, 64), 'window_size=4, wanted 0'),
    ('vit', (1, 3, 32, 64), 'num_prefix=1, wanted 5')])
def test_a_layout_of_something_else(owner, shape, message):
    """... most of which would give rows, of wrong patches or of wrong neighbours."""
    layout = build(owner).make_layout(torch.randn(shape))
    with pytest.raises(ValueError, match=f'the layout does not fit .*: {message}'):
        build('dinov3').forward_tokens(torch.randn(1, 3, 32, 64), layout)


@torch.no_grad()
def test_the_family_that_the_page_adds():
    """docs/encoders.md, "Add one"."""
    page = (ROOT / 'docs/encoders.md').read_text(encoding='utf-8').partition('## Add one')[2]
    names = {}
    exec(page.partition('```python\n')[2].partition('```')[0], names)
    model = names['APTMine'].from_preset(**SIZES).eval()
    x = image_for(model, MIXED)
    rows, layout = model.forward_tokens(x)
    assert torch.equal(scales_of(layout.without_prefix), MIXED) and rows.shape == (layout.num_tokens, 16)
    dense = names['APTMine'].from_preset(**{**SIZES, 'num_scales': 1, 'thresholds': ()}).eval()
    dense.load_state_dict({key: value for key, value in model.state_dict().items() if key not in ADDED_PARAMETERS})
    model.thresholds = (-1, -1)
    torch.testing.assert_close(model(x), dense(x), atol=1e-5, rtol=0)
    with pytest.raises(TypeError, match='APTMine has final_norm=True by itself'):
        names['APTMine'](final_norm=False)
