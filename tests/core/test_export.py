"""The encoder with fixed shapes gives what the model gives, whatever the bucket."""
import pytest
import torch

from apt_dense.benchmark.inputs import normalise, synthetic_image, synthetic_scales
from apt_dense.core.eva02 import APTEVA02
from apt_dense.core.export import FixedEncoder
from apt_dense.core.plain_vit import APTViT

pytestmark = pytest.mark.own_device  # torch.export and onnxruntime are tried on a CPU

SIZE_PX = (256, 384)
SETTINGS = {
    'windows': dict(window_size=8, global_block_indexes=(1,)),
    'class token': dict(window_size=0, global_block_indexes=(0, 1), with_cls_token=True),
    'centre': dict(window_size=8, global_block_indexes=(0,), rope_anchor='center'),
    'no details': dict(window_size=8, global_block_indexes=(0,), detail_branch='none'),
    'no MLP': dict(window_size=8, global_block_indexes=(0,), detail_branch='residual'),
}


def model_of(num_scales=3, **settings):
    """A small model whose parameters, the added ones too, are random."""
    model = APTEVA02(img_size=256, embed_dims=48, depth=2, num_heads=3, out_indices=(0, 1), pretrain_img_size=64,
                     num_scales=num_scales, thresholds=(1,) * (num_scales - 1), **settings).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if 'zero_mlp' in name or name == 'cls_token':
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def image_of(kept=0.6, num_scales=3):
    return normalise(synthetic_image(synthetic_scales(kept, 16, 24, num_scales)))[None]


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize('settings', SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize('kept', [0.6, 1.0], ids=['merged', 'nothing merged'])
def test_equals_the_model(settings, kept):
    model, x = model_of(**settings), image_of(kept)
    wanted = model(x)
    layout = model.last_layout
    cells = layout.num_cells + layout.num_prefix
    assert (layout.num_tokens < cells) == (kept < 1)
    for num_tokens in {layout.num_tokens, cells}:  # no padding, the most
        encoder = FixedEncoder(model, SIZE_PX, num_tokens).eval()
        inputs = encoder.inputs(layout)
        assert inputs['patches'].shape == (num_tokens,)
        assert_same(encoder(x, **inputs), wanted)


def test_an_empty_scale():
    model, x = model_of(**SETTINGS['windows']), image_of(0.6, 2)  # no patch of 64 px
    wanted = model(x)
    assert model.last_layout.scale_counts[1] and not model.last_layout.scale_counts[2]
    encoder = FixedEncoder(model, SIZE_PX, 300).eval()
    assert_same(encoder(x, **encoder.inputs(model.last_layout)), wanted)


@pytest.mark.parametrize('settings', list(SETTINGS.values())[:2], ids=list(SETTINGS)[:2])
def test_the_dense_model_takes_the_image_alone(settings):
    model, x = model_of(1, **settings), image_of()
    assert_same(FixedEncoder(model, SIZE_PX).eval()(x), model(x))


@pytest.mark.parametrize('num_scales', [1, 3], ids=['dense', 'APT'])
def test_rows_before_the_patches_beside_windows(num_scales):
    """Their run is shorter than a window, also where every cell is a token."""
    model = APTViT(img_size=256, embed_dims=48, depth=2, num_heads=3, pretrain_img_size=64, num_registers=4,
                   window_size=8, global_block_indexes=(1,), num_scales=num_scales,
                   thresholds=(1,) * (num_scales - 1)).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = image_of()
    wanted = model(x)
    encoder = FixedEncoder(model, SIZE_PX, None if num_scales == 1 else 320).eval()
    inputs = {} if num_scales == 1 else encoder.inputs(model.last_layout)
    assert_same(encoder(x, **inputs), wanted)


def test_padding_changes_nothing():
    """What the filling rows hold reaches no cell."""
    model, x = model_of(**SETTINGS['windows']), image_of()
    encoder = FixedEncoder(model, SIZE_PX, 384).eval()
    inputs = encoder.inputs(model.make_layout(x))
    wanted = encoder(x, **inputs)
    num_tokens = model.make_layout(x).num_tokens
    inputs['patches'][num_tokens:] = 7
    inputs['turns'][num_tokens:] = 1.0
    inputs['window_turns'][num_tokens:] = 1.0
    assert_same(encoder(x, **inputs), wanted)


@pytest.mark.parametrize(
    'settings', [*list(SETTINGS.values())[:2], dict(SETTINGS['windows'], proportional_attention=True)],
    ids=[*list(SETTINGS)[:2], 'proportional'])
def test_one_program_for_every_image(settings, tmp_path):
    """Exported with one image, run with another that has another number of tokens."""
    model = model_of(**settings)
    encoder = FixedEncoder(model, SIZE_PX, 320).eval()
    example = image_of(0.4)
    program = torch.export.export(encoder, (example,), encoder.inputs(model.make_layout(example)))
    torch.export.save(program, tmp_path / 'apt.pt2')
    run = torch.export.load(tmp_path / 'apt.pt2').module()
    for kept in (0.4, 0.8):
        x = image_of(kept)
        wanted = model(x)
        assert_same(run(x, **encoder.inputs(model.last_layout)), wanted)


def test_the_dense_program(tmp_path):
    model, x = model_of(1, **SETTINGS['windows']), image_of()
    torch.export.save(torch.export.export(FixedEncoder(model, SIZE_PX).eval(), (x,)), tmp_path / 'dense.pt2')
    assert_same(torch.export.load(tmp_path / 'dense.pt2').module()(x), model(x))


@pytest.mark.parametrize('num_scales', [1, 3], ids=['dense', 'APT'])
def test_onnx(num_scales, tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    model = model_of(num_scales, **SETTINGS['windows'])
    encoder, x = FixedEncoder(model, SIZE_PX, None if num_scales == 1 else 320).eval(), image_of(0.8)
    layout = {} if num_scales == 1 else encoder.inputs(model.make_layout(image_of(0.4)))
    torch.onnx.export(encoder, (image_of(0.4),), tmp_path / 'model.onnx', kwargs=layout, dynamo=True, verbose=False,
                      input_names=['image', *layout])
    session = runtime.InferenceSession(tmp_path / 'model.onnx', providers=['CPUExecutionProvider'])
    wanted = model(x)
    inputs = dict({} if num_scales == 1 else encoder.inputs(model.last_layout), image=x)
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    assert_same([torch.from_numpy(one) for one in found], wanted)


def test_errors():
    model, x = model_of(**SETTINGS['windows']), image_of()
    with pytest.raises(ValueError, match='has a reduction, .* Build the model with reduction=None'):
        FixedEncoder(model_of(**SETTINGS['windows'], reduction=dict(type='ToMe', kept=0.9)), SIZE_PX, 100)
    with pytest.raises(ValueError, match='multiples of 128 px'):
        FixedEncoder(model, (256, 300), 100)
    with pytest.raises(ValueError, match='give num_tokens'):
        FixedEncoder(model, SIZE_PX)
    with pytest.raises(ValueError, match='choose 1 to 384'):
        FixedEncoder(model, SIZE_PX, 385)
    encoder = FixedEncoder(model, SIZE_PX, 20)
    with pytest.raises(ValueError, match='and the bucket 20: set max_tokens'):
        encoder.inputs(model.make_layout(x))
    with pytest.raises(ValueError, match='wanted 1 of 16x24'):
        encoder.inputs(model.make_layout(x[..., :256]))
