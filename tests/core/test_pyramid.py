import pytest
import torch

from apt_dense import SimpleFeaturePyramid
from apt_dense.core.conversion import convert
from apt_dense.core.pyramid import Conv2dLN, LayerNorm2d

from .toys import randomise, without_prefix


def build(in_channels: int = 8, out_channels: int = 6) -> SimpleFeaturePyramid:
    pyramid = SimpleFeaturePyramid(in_channels, out_channels)
    randomise(pyramid)
    return pyramid


@torch.no_grad()
def test_official_pyramid(reference):
    data = reference('eva02_det_backbone_a')
    pyramid = SimpleFeaturePyramid(64, 32)
    pyramid.load_state_dict(without_prefix(convert(without_prefix(data, 'sd/'), 'det').state_dict, 'neck.'))
    maps = pyramid((data['out/block3'].permute(0, 3, 1, 2),))
    for name, found in zip(('p2', 'p3', 'p4', 'p5', 'p6'), maps, strict=True):
        if name in ('p2', 'p3'):
            name, found = f'{name}_every_third', found[..., ::3, ::3]
        torch.testing.assert_close(found, data[f'out/{name}'], atol=1e-4, rtol=0)


@pytest.mark.parametrize(('height', 'width'), [(8, 12), (6, 10), (2, 4)])
@torch.no_grad()
def test_sides_and_channels(height, width):
    maps = build()([torch.randn(2, 8, height, width)])
    sides = [(4 * height, 4 * width), (2 * height, 2 * width), (height, width), (height // 2, width // 2),
             (-(-height // 4), -(-width // 4))]
    assert [tuple(found.shape) for found in maps] == [(2, 6, *side) for side in sides]
    assert torch.equal(maps[4], maps[3][:, :, ::2, ::2])


@torch.no_grad()
def test_stages_equal_their_parts():
    pyramid, x = build(), torch.randn(2, 8, 6, 10)
    p2, p3, p4, p5, _ = pyramid([x])
    two, three = pyramid.simfp_2, pyramid.simfp_3
    up = two[3](torch.nn.functional.gelu(two[1](two[0](x))))
    torch.testing.assert_close(p2, two[5](two[4](up)))
    torch.testing.assert_close(p3, three[2](three[1](three[0](x))))
    torch.testing.assert_close(p4, pyramid.simfp_4[1](pyramid.simfp_4[0](x)))
    pooled = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    torch.testing.assert_close(p5, pyramid.simfp_5[2](pyramid.simfp_5[1](pooled)))


@torch.no_grad()
def test_uses_the_last_input():
    pyramid, x = build(), torch.randn(2, 8, 6, 10)
    torch.testing.assert_close(pyramid((torch.randn(2, 3, 1, 1), x)), pyramid([x]))


def test_every_parameter_gets_a_finite_gradient():
    pyramid = build()
    sum((found ** 2).mul(torch.randn_like(found)).sum() for found in pyramid([torch.randn(2, 8, 6, 10)])).backward()
    for name, parameter in pyramid.named_parameters():
        assert parameter.grad.isfinite().all() and (parameter.grad != 0).any(), name


@torch.no_grad()
def test_layer_norm_over_channels():
    """Of values of 1e-3, so that the 1e-6 under the root counts."""
    norm, x = LayerNorm2d(8), 1e-3 * torch.randn(2, 8, 6, 10)
    randomise(norm)
    mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    scaled = (x - mean) / (var + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), scaled * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1), atol=1e-5,
                               rtol=0)


@torch.no_grad()
def test_convolution_keeps_the_size_and_has_no_bias():
    conv, x = Conv2dLN(8, 6, 3), torch.randn(2, 8, 6, 10)
    assert conv.bias is None
    torch.testing.assert_close(conv(x), conv.norm(torch.nn.functional.conv2d(x, conv.weight, padding=1)))
