import pytest
import torch

from apt_dense import APTEVA02, TokenLayout
from apt_dense.core.embed import DETAIL_BRANCHES, AdaptivePatchEmbed, position_tables
from tests import oracle

from .toys import image_of, normalise, random_scales, randomise, without_prefix

MIXED = random_scales([0.3, 0.9], 8, 12, 3)
MAPS = {
    'mixed': MIXED,
    'all_fine': torch.zeros_like(MIXED),
    'all_coarse': torch.full_like(MIXED, 2),
    'one_fine_one_coarse': torch.tensor([0, 2])[:, None, None].expand(MIXED.shape),
    'empty_scale_0': random_scales([0.4, 0.7], 4, 6, 2).repeat_interleave(2, 1).repeat_interleave(2, 2) + 1,
    'empty_scale_1': random_scales([0.3, 0.8], 8, 12, 3, skipped=(1,)),
    'empty_scale_2': random_scales([0.3, 0.8], 8, 12, 3, skipped=(2,)),
}


def build(branch: str = 'zero', num_scales: int = 3) -> AdaptivePatchEmbed:
    embed = AdaptivePatchEmbed(4, 16, num_scales, branch)
    randomise(embed)
    return embed


@pytest.mark.parametrize(('branch', 'dtype'), [*((branch, torch.float32) for branch in DETAIL_BRANCHES),
                                               ('zero', torch.float64)])
@pytest.mark.parametrize('name', MAPS)
@torch.no_grad()
def test_equals_one_token_at_a_time(name, branch, dtype):
    scales, embed = MAPS[name], build(branch).to(dtype)
    x, table = normalise(image_of(scales), dtype), torch.randn(1, 6 * 6 + 1, 16, dtype=dtype)
    state = {f'patch_embed.{key}': value for key, value in embed.state_dict().items()}
    position = torch.nn.functional.interpolate(table[0, 1:].T.view(1, 16, 6, 6), size=(8, 12), mode='bicubic')
    layout = TokenLayout.from_scales(scales, 4, 3)
    rows = embed(x, layout, position_tables(position[0].permute(1, 2, 0), layout))
    wanted = oracle.embed({**state, 'pos_embed': table}, x, oracle.token_list(scales, 4, 3),
                          {'patch_size': 4, 'detail_branch': branch})
    assert rows.dtype == dtype
    torch.testing.assert_close(rows, wanted, atol=1e-5 if dtype == torch.float32 else 1e-10, rtol=0)


@torch.no_grad()
def test_one_scale_is_a_convolution():
    embed, scales = build(num_scales=1), torch.zeros(2, 8, 12, dtype=torch.int64)
    x, position = normalise(image_of(scales)), torch.randn(8, 12, 16)
    layout = TokenLayout.dense(2, 8, 12, 4)
    positions = position_tables(position, layout)
    wanted = embed.proj(x) + position.permute(2, 0, 1)
    torch.testing.assert_close(layout.expand(embed(x, layout, positions)), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize('branch', DETAIL_BRANCHES)
@torch.no_grad()
def test_all_fine_equals_one_scale(branch):
    several, one = build(branch), build(num_scales=1)
    one.load_state_dict(several.state_dict(), strict=False)
    x, position = torch.randn(2, 3, 32, 48), torch.randn(8, 12, 16)
    three, single = TokenLayout.from_scales(MAPS['all_fine'], 4, 3), TokenLayout.dense(2, 8, 12, 4, 1)
    rows = several(x, three, position_tables(position, three))
    cells = one(x, single, position_tables(position, single))
    torch.testing.assert_close(three.expand(rows), single.expand(cells), atol=1e-6, rtol=0)


@torch.no_grad()
def test_resizes_directly_and_not_by_halving():
    """A patch of 16 px becomes one of 4 px: of each 4 x 4 pixels the middle four count."""
    embed = build('none')
    x = torch.zeros(2, 3, 16, 32)
    x[:, :, 0::4] = x[:, :, 3::4] = 100.  # rows that a direct resize does not read
    layout = TokenLayout.from_scales(torch.full((2, 4, 8), 2), 0, 3)
    position = torch.zeros(4, 8, 16)
    positions = position_tables(position, layout)
    torch.testing.assert_close(embed(x, layout, positions), embed(x * 0, layout, positions))


@torch.no_grad()
def test_positions_of_coarse_tokens_are_resampled_with_antialias():
    embed = build('none')
    layout, position = TokenLayout.from_scales(MIXED, 4, 3), torch.randn(8, 12, 16)
    positions = position_tables(position, layout)
    x = torch.randn(2, 3, 32, 48)
    difference = embed(x, layout, positions) - embed(x, layout, torch.zeros_like(positions))
    y, cell_x = layout.cell_yx
    for row, scale, i, j in zip(difference, layout.scales.tolist(), y.tolist(), cell_x.tolist(), strict=True):
        table = torch.nn.functional.interpolate(position.permute(2, 0, 1)[None], size=(8 >> scale, 12 >> scale),
                                                mode='bicubic', antialias=scale > 0)
        torch.testing.assert_close(row, table[0, :, i >> scale, j >> scale], atol=1e-5, rtol=0)


@torch.no_grad()
def test_zero_branch_changes_nothing_at_step_0():
    zero = AdaptivePatchEmbed(4, 16, 3, 'zero')
    none = AdaptivePatchEmbed(4, 16, 3, 'none')
    none.load_state_dict({'proj.weight': zero.proj.weight, 'proj.bias': zero.proj.bias})
    x, layout, position = torch.randn(2, 3, 32, 48), TokenLayout.from_scales(MIXED, 4, 3), torch.randn(8, 12, 16)
    positions = position_tables(position, layout)
    assert torch.equal(zero(x, layout, positions), none(x, layout, positions))
    for branch in ('residual', 'nonzero'):
        other = AdaptivePatchEmbed(4, 16, 3, branch)
        other.load_state_dict(none.state_dict(), strict=False)
        change = (other(x, layout, positions) - none(x, layout, positions)).abs().amax(1)
        assert (change[layout.scales > 0] > 1e-3).all() and (change[layout.scales == 0] == 0).all()


@pytest.mark.parametrize(('branch', 'num_scales', 'wanted'), [
    ('zero', 3, {'proj', 'conv_down', 'zero_mlp'}), ('nonzero', 3, {'proj', 'conv_down', 'zero_mlp'}),
    ('residual', 3, {'proj', 'conv_down'}), ('none', 3, {'proj'}), ('zero', 1, {'proj'}), ('nonzero', 1, {'proj'}),
])
def test_parameters_of_the_branches(branch, num_scales, wanted):
    embed = AdaptivePatchEmbed(4, 16, num_scales, branch)
    assert {name.split('.')[0] for name, _ in embed.named_parameters()} == wanted
    if 'zero_mlp' in wanted:
        is_zero = [bool((parameter == 0).all()) for parameter in embed.zero_mlp.parameters()]
        assert is_zero == [branch == 'zero'] * 2


@pytest.mark.parametrize('name', MAPS)
@pytest.mark.parametrize('branch', DETAIL_BRANCHES)
def test_every_parameter_gets_a_finite_gradient(branch, name):
    embed, layout = build(branch), TokenLayout.from_scales(MAPS[name], 4, 3)
    (embed(torch.randn(2, 3, 32, 48), layout, position_tables(torch.randn(8, 12, 16), layout)) ** 2).sum().backward()
    has_coarse = sum(layout.scale_counts[1:]) > 0
    for key, parameter in embed.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert (parameter.grad != 0).any() == (has_coarse or key.startswith('proj')), key


def test_the_zero_branch_learns_from_step_0():
    embed, layout = AdaptivePatchEmbed(4, 16, 3, 'zero'), TokenLayout.from_scales(MIXED, 4, 3)
    (embed(torch.randn(2, 3, 32, 48), layout, position_tables(torch.randn(8, 12, 16), layout)) ** 2).sum().backward()
    assert (embed.zero_mlp.weight.grad != 0).any() and (embed.zero_mlp.bias.grad != 0).all()


@torch.no_grad()
def test_memory_format_of_the_image_does_not_matter():
    embed, layout = build(), TokenLayout.from_scales(MIXED, 4, 3)
    x, position = torch.randn(2, 3, 32, 48), torch.randn(8, 12, 16)
    positions = position_tables(position, layout)
    wanted = embed(x, layout, positions)
    for other in (x.to(memory_format=torch.channels_last), torch.stack([x, x], 4)[..., 0]):
        torch.testing.assert_close(embed(other, layout, positions), wanted, atol=1e-5, rtol=0)


def test_unknown_branch():
    with pytest.raises(ValueError, match="unknown detail_branch 'one': choose one of .*'zero', 'none', 'residual'"):
        AdaptivePatchEmbed(4, 16, 3, 'one')


@pytest.mark.parametrize('name', ['apt_embed_3scale', 'apt_embed_3scale_no64'])
@torch.no_grad()
def test_official_embedding(reference, name):
    data, weights = reference(name), reference('apt_embed_3scale')  # both files were made with these weights
    meta, official = data['meta'], without_prefix(weights, 'sd/mixed_patch.')
    model = APTEVA02(img_size=128, embed_dims=64, depth=1, num_heads=2, window_size=0, global_block_indexes=(),
                     pretrain_img_size=128, with_cls_token=True, num_scales=3, thresholds=meta['thresholds'],
                     img_mean=[255 * value for value in meta['mean']], img_std=[255 * value for value in meta['std']])
    embed = model.patch_embed
    for own, key in ((embed.proj, 'patch_embed.proj'), (embed.conv_down, 'patch_attn'), (embed.zero_mlp, 'zero_conv')):
        own.load_state_dict(without_prefix(official, f'{key}.'))
    model.cls_token.copy_(official['cls_token'])
    model.pos_embed.copy_(weights['in/pos_embed'])
    mean, std = (torch.tensor(meta[key]).view(3, 1, 1) for key in ('mean', 'std'))
    x = (data['in/uint8_bhwc'].permute(0, 3, 1, 2).float() / 255 - mean) / std

    layout = model.make_layout(x)
    assert layout.images.cu_seqlens.tolist() == data['tok/cu_seqlens'].tolist()
    order = official_order(layout)
    codes = layout.scales[order] + 1
    assert codes.where(codes > 0, -1).tolist() == data['tok/output_mask'].tolist()
    torch.testing.assert_close(model.embed(x, layout)[order], data['out/tokens'][0], atol=1e-4, rtol=0)
    model.pos_embed.zero_()
    torch.testing.assert_close(model.embed(x, layout)[order], data['out/tokens_zero_pos'][0], atol=1e-4, rtol=0)


def official_order(layout: TokenLayout) -> list[int]:
    """Rows of a layout in the official order: by image, then class token and scale, then row by row."""
    image = layout.images.spread(torch.arange(layout.batch_size))
    keys = torch.stack([image, layout.scales, *layout.cell_yx], 1).tolist()
    return sorted(range(layout.num_tokens), key=lambda row: keys[row])
