"""The backbone against the slow oracle and against the official code."""
import pytest
import torch

from apt_dense import APTEVA02
from apt_dense.core.conversion import convert
from tests.oracle import MEAN, STD, oracle_backbone, scale_map

from .toys import SPLIT, image_of, normalise, random_scales, toy_model, without_prefix

BASE = {'patch_size': 4, 'embed_dims': 16, 'depth': 4, 'num_heads': 2, 'pretrain_img_size': 20, 'img_size': (32, 48),
        'window_size': 4, 'global_block_indexes': (1, -1), 'out_indices': (0, 2, -1), 'num_scales': 3,
        'thresholds': (SPLIT, SPLIT)}
SEGMENTATION = {**BASE, 'window_size': 0, 'global_block_indexes': (), 'with_cls_token': True, 'depth': 3,
                'out_indices': (1, 2)}
FOUR_SCALES = {**BASE, 'num_scales': 4, 'thresholds': (SPLIT,) * 3, 'window_size': 8, 'img_size': (64, 32)}
MIXED = random_scales([0.3, 0.9], 8, 12, 3)
CASES = {
    'mixed': (BASE, MIXED),
    'center': ({**BASE, 'rope_anchor': 'center'}, MIXED),
    'all_fine': (BASE, torch.zeros_like(MIXED)),
    'all_coarse': (BASE, torch.full_like(MIXED, 2)),
    'one_image_fine_one_coarse': (BASE, torch.tensor([0, 2])[:, None, None].expand(MIXED.shape)),
    'empty_scale_0': (BASE, random_scales([0.4, 0.7], 4, 6, 2).repeat_interleave(2, 1).repeat_interleave(2, 2) + 1),
    'empty_scale_1': (BASE, random_scales([0.3, 0.8], 8, 12, 3, skipped=(1,))),
    'empty_scale_2': (BASE, random_scales([0.3, 0.8], 8, 12, 3, skipped=(2,))),
    'four_scales_empty_scale_2': (FOUR_SCALES, random_scales([0.2, 0.7], 16, 8, 4, skipped=(2,))),
    'window_of_two_roots': ({**BASE, 'window_size': 8, 'img_size': (32, 64)}, random_scales([0.3, 0.9], 8, 16, 3)),
    'window_of_three_roots': ({**BASE, 'num_scales': 2, 'thresholds': (SPLIT,), 'window_size': 6, 'img_size': (24, 72)},
                              random_scales([0.3, 0.7], 6, 18, 2)),
    'no_global_block': ({**BASE, 'global_block_indexes': ()}, MIXED),
    'all_global': ({**BASE, 'window_size': 0, 'global_block_indexes': ()}, MIXED),
    'class_token': (SEGMENTATION, MIXED),
    'class_token_center': ({**SEGMENTATION, 'rope_anchor': 'center'}, MIXED),
    'class_token_all_fine': (SEGMENTATION, torch.zeros_like(MIXED)),
    'table_of_the_grid_size': ({**BASE, 'pretrain_img_size': 32, 'img_size': 32}, random_scales([0.2, 0.8], 8, 8, 3)),
    'dense': ({**BASE, 'num_scales': 1, 'thresholds': ()}, torch.zeros_like(MIXED)),
    'dense_class_token': ({**SEGMENTATION, 'num_scales': 1, 'thresholds': ()}, torch.zeros_like(MIXED)),
    'no_branch': ({**BASE, 'detail_branch': 'none'}, MIXED),
    'residual_branch': ({**BASE, 'detail_branch': 'residual'}, MIXED),
    'nonzero_branch': ({**BASE, 'detail_branch': 'nonzero'}, MIXED),
    'other_normalisation': ({**BASE, 'img_mean': (120., 110., 100.), 'img_std': (50., 60., 70.)}, MIXED),
}


def _input(settings: dict, scales: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return normalise(image_of(scales), dtype, settings.get('img_mean', MEAN), settings.get('img_std', STD))


@pytest.mark.parametrize('name', CASES)
@torch.no_grad()
def test_equals_oracle(name):
    settings, scales = CASES[name]
    model, x = toy_model(**settings), _input(settings, scales)
    if settings['num_scales'] > 1:  # the case is what its name says
        assert torch.equal(scale_map(x, {'scorer': 'entropy', 'img_mean': MEAN, 'img_std': STD, **settings}), scales)
    outputs = model(x)
    wanted = oracle_backbone(model.state_dict(), x, **settings)
    assert len(outputs) == len(wanted) == len(settings['out_indices'])
    for output, want in zip(outputs, wanted, strict=True):
        assert output.shape == (2, 16, *scales.shape[1:])
        torch.testing.assert_close(output, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', ['mixed', 'center', 'empty_scale_1', 'class_token', 'dense'])
@torch.no_grad()
def test_equals_oracle_in_float64(name):
    settings, scales = CASES[name]
    model, x = toy_model(**settings).double(), _input(settings, scales, torch.float64)
    for output, want in zip(model(x), oracle_backbone(model.state_dict(), x, **settings), strict=True):
        assert output.dtype == torch.float64
        torch.testing.assert_close(output, want, atol=1e-10, rtol=0)


@pytest.mark.parametrize(('scorer', 'thresholds'), [('laplacian_mean', (1.0, 0.8)), ('laplacian_max', (4.0, 3.5)),
                                                    ('laplacian_std', (0.8, 0.7)), ('upsampling_error', (0.01, 0.008))])
@torch.no_grad()
def test_other_scorers_equal_oracle(scorer, thresholds):
    settings = {**BASE, 'depth': 2, 'out_indices': (-1,), 'scorer': scorer, 'thresholds': thresholds}
    noise = torch.rand(2, 3, 32, 48) * torch.linspace(20, 255, 48) * torch.tensor([0.5, 1])[:, None, None, None]
    x, model = normalise(noise.round()), toy_model(**settings)
    torch.testing.assert_close(model(x), oracle_backbone(model.state_dict(), x, **settings), atol=1e-5, rtol=0)
    assert sum(model.last_layout.scale_counts[1:]) > 2 and not model.last_layout.images.equal


@torch.no_grad()
def test_padding_after_normalisation_merges():
    model = toy_model(**BASE)
    x = normalise(image_of(torch.zeros_like(MIXED)))
    x[:, :, 16:] = 0
    x[1, :, :, 32:] = 0
    torch.testing.assert_close(model(x), oracle_backbone(model.state_dict(), x, **BASE), atol=1e-5, rtol=0)
    assert model.last_layout.images.lengths == (4 * 12 + 3, 4 * 8 + 4)


@torch.no_grad()
def test_layer_norms_of_small_activations_equal_oracle():
    """With activations of 1e-3 the 1e-6 under the root counts: 1e-5, torch's default, would differ by half."""
    settings = {**BASE, 'depth': 2, 'out_indices': (-1,)}
    model = toy_model(**settings)
    for name, parameter in model.named_parameters():
        if name.startswith(('patch_embed', 'pos_embed')) or 'attn.proj' in name or 'mlp.w3' in name:
            parameter.mul_(1e-3)
        elif 'mlp.w1' in name or 'mlp.w2' in name:
            parameter.mul_(0.03)
    x = _input(settings, MIXED)
    wanted = oracle_backbone(model.state_dict(), x, **settings)
    assert 1e-4 < wanted[0].std() < 1e-2
    torch.testing.assert_close(model(x), wanted, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize('name', ['mixed', 'class_token', 'empty_scale_1', 'all_fine', 'all_coarse', 'dense'])
def test_gradients_equal_the_oracles(name):
    settings, scales = CASES[name]
    model, x = toy_model(**settings).train(), _input(settings, scales)
    parameters = dict(model.named_parameters())
    weights = [torch.randn(2, 16, *scales.shape[1:]) for _ in settings['out_indices']]

    def gradients(outputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor | None]:
        loss = sum((weight * output).sum() for weight, output in zip(weights, outputs, strict=True))
        values = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return dict(zip(parameters, values, strict=True))

    wanted = gradients(oracle_backbone(parameters, x, **settings))
    noise = 1e-6 * max(want.abs().max() for want in wanted.values() if want is not None)  # where a gradient is 0
    for key, gradient in gradients(model(x)).items():
        assert gradient is not None, f'{key} has no gradient'
        # The oracle never touches the branch where no patch is coarse.
        want = torch.zeros_like(gradient) if wanted[key] is None else wanted[key]
        assert (gradient - want).abs().max() <= 1e-5 * want.abs().max() + noise, key


def test_official_detection_backbone(reference):
    data = reference('eva02_det_backbone_a')
    model = APTEVA02(img_size=128, embed_dims=64, depth=4, num_heads=4, window_size=4, global_block_indexes=(2,),
                     out_indices=(0, 1, 2, 3), pretrain_img_size=64).eval()
    model.load_state_dict(without_prefix(convert(without_prefix(data, 'sd/'), 'det').state_dict, 'backbone.'))
    x = data['in/x']
    attention = {}
    for index in (1, 2):
        model.blocks[index].attn.proj.register_forward_hook(
            lambda _, __, output, i=index: attention.update({i: output}))
    with torch.no_grad():
        outputs = model(x)
        tokens = model.embed(x, model.make_layout(x))
    layout = model.last_layout
    _assert_close(layout.expand(tokens).permute(0, 2, 3, 1), data['out/tokens_in'])
    for index, output in enumerate(outputs):
        _assert_close(output.permute(0, 2, 3, 1), data[f'out/block{index}'])
    _assert_close(attention[1].view(8, 4, 4, 64), data['out/block1_attn'])  # windows are runs
    _assert_close(layout.expand(attention[2]).permute(0, 2, 3, 1), data['out/block2_attn'])


def test_official_segmentation_backbone(reference):
    data = reference('eva02_seg_backbone')
    model = APTEVA02(img_size=128, embed_dims=64, depth=4, num_heads=4, window_size=0, global_block_indexes=(),
                     out_indices=(0, 1, 2, 3), pretrain_img_size=128, with_cls_token=True).eval()
    model.load_state_dict(without_prefix(convert(without_prefix(data, 'sd/'), 'seg').state_dict, 'backbone.'))
    x = data['in/x']
    tokens = {}
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, __, output, i=index: tokens.update({i: output}))
    with torch.no_grad():
        outputs = model(x)
        _assert_close(model.embed(x, model.make_layout(x)).view(2, 65, 64), data['out/tokens_in'])
    for index, output in enumerate(outputs):
        _assert_close(tokens[index].view(2, 65, 64), data[f'out/block{index}'])  # the class token, too
        _assert_close(output.flatten(2).transpose(1, 2), data[f'out/block{index}'][:, 1:])


def _assert_close(output: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(output, wanted, atol=1e-4, rtol=0)
