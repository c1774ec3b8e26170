"""Nothing merged: adapted models give what transformers gives."""
import pytest
import torch
from torch import Tensor

from tests.hf.models import FLAG, MLP, STAGES, build, randomised, sam3, smooth_and_busy, transformers

transformers()
from apt_dense import hf  # noqa: E402

CASES = [
    ('DINOv3ViTModel', {}, {}), ('DINOv3ViTModel', dict(use_gated_mlp=True, hidden_act='silu'), {}),
    ('DINOv3ViTModel', dict(num_register_tokens=0, key_bias=True, mlp_bias=False, hidden_act='gelu_new'), {}),
    ('DINOv3ViTBackbone', dict(STAGES, return_class_token=True), {}),
    ('DINOv3ViTBackbone', dict(STAGES, apply_layernorm=False), {}),
    ('DINOv3ViTBackbone', dict(STAGES, reshape_hidden_states=False), {}),
    ('Dinov2Model', dict(output_hidden_states=True), {}),
    ('Dinov2ForImageClassification', dict(use_swiglu_ffn=True, qkv_bias=False), {}),
    ('Dinov2Backbone', STAGES, {}), ('Dinov2Backbone', dict(STAGES, apply_layernorm=False), {}),
    ('Dinov2WithRegistersModel', {}, {}), ('Dinov2WithRegistersForImageClassification', {}, {}),
    ('Dinov2WithRegistersBackbone', dict(STAGES, reshape_hidden_states=False), {}),
    ('ViTModel', {}, FLAG), ('ViTModel', dict(return_dict=False), FLAG),
    ('ViTForImageClassification', dict(layer_norm_eps=1e-3), FLAG),
    ('CLIPVisionModel', {}, FLAG), ('CLIPVisionModelWithProjection', dict(hidden_act='gelu'), FLAG)]


def flat(output: object) -> list[Tensor | None]:
    """All tensors of an output, in order."""
    if output is None or isinstance(output, Tensor):
        return [output]
    parts = output.to_tuple() if hasattr(output, 'to_tuple') else output
    return [tensor for part in parts for tensor in flat(part)]


def assert_same(got: object, wanted: object) -> None:
    """Of one type, with the same entries, of the same shapes and values, these to 1e-5 of the largest."""
    assert type(got) is type(wanted)
    if hasattr(wanted, 'keys'):
        assert list(got.keys()) == list(wanted.keys())
    for own, theirs in zip(flat(got), flat(wanted), strict=True):
        assert (own is None) == (theirs is None)
        if own is not None:
            assert own.shape == theirs.shape and own.dtype == theirs.dtype
            assert (own - theirs).abs().max() <= 1e-5 * max(1, theirs.abs().max())


@torch.no_grad()
@pytest.mark.parametrize(('kind', 'settings', 'arguments'), CASES, ids=lambda value: str(value)[:60])
def test_outputs_are_those_of_transformers(kind, settings, arguments):
    """Not square, at another size than configured: last rows, pooled rows, hidden states, feature maps, logits."""
    model, image = build(kind, **settings), torch.randn(2, 3, 64, 128)
    names = {name: id(parameter) for name, parameter in model.named_parameters()}
    calls = [dict(arguments, output_hidden_states=value) for value in (None, True, [0, -2, 9])]
    calls.append(dict(arguments, return_dict=False))
    wanted = [model(image, **call) for call in calls]
    assert hf.adapt(model, 3, (-1, -1)) is model
    for call, output in zip(calls, wanted, strict=True):
        assert_same(model(pixel_values=image, **call), output)
    assert {name: id(parameter) for name, parameter in model.named_parameters()
            if 'apt.' not in name} == names


@torch.no_grad()
@pytest.mark.parametrize('kind', ['ViTModel', 'CLIPVisionModel', 'Dinov2Model', 'Dinov2WithRegistersModel'])
def test_the_configured_size_needs_no_flag(kind):
    model, image = build(kind), torch.randn(2, 3, 64, 64)
    wanted = model(image)
    assert_same(hf.adapt(model, 3, (-1, -1))(image), wanted)


@torch.no_grad()
def test_similarities_of_clip():
    model, image, text = build('CLIPModel'), torch.randn(2, 3, 64, 64), torch.tensor([[0, 3, 1], [0, 4, 1]])
    wanted = model(input_ids=text, pixel_values=image)
    assert_same(hf.adapt(model, 3, (-1, -1))(input_ids=text, pixel_values=image), wanted)
    assert list(hf.packed_encoders(model)) == ['vision_model']


@torch.no_grad()
def test_sam3_from_image_to_masks():
    model, image, text = sam3(), torch.randn(2, 3, 112, 112), torch.tensor([[0, 3, 1], [0, 4, 1]])
    call = dict(pixel_values=image, input_ids=text)
    wanted, maps = model(**call), model.vision_encoder(image, output_hidden_states=True)
    assert (wanted.pred_masks - model(**{**call, 'pixel_values': -image}).pred_masks).abs().max() > 1e-3
    hf.adapt(model, 3, (-1, -1))
    assert_same(model(**call), wanted)
    assert_same(model.vision_encoder(image, output_hidden_states=True), maps)
    assert list(hf.packed_encoders(model)) == ['vision_encoder.backbone']


@torch.no_grad()
def test_sam3_merges():
    model, image = sam3(), smooth_and_busy(112, 112)
    dense = model.vision_encoder(image)
    encoder, = hf.packed_encoders(hf.adapt(model, 3, (3.0, 3.0))).values()
    merged = model.vision_encoder(image)
    assert sum(encoder.last_layout.scale_counts) < encoder.last_layout.num_cells
    assert merged.last_hidden_state.shape == dense.last_hidden_state.shape
    assert [part.shape for part in merged.fpn_hidden_states] == [part.shape for part in dense.fpn_hidden_states]


@torch.no_grad()
def test_half_precision_weights_and_autocast():
    model, image = build('DINOv3ViTModel'), torch.randn(2, 3, 64, 128)
    with torch.autocast('cpu', torch.bfloat16):
        cast = model(image).last_hidden_state
    half = model.bfloat16()(image).last_hidden_state
    hf.adapt(model, 3, (-1, -1))
    assert model.apt.conv_down.weight.dtype == torch.bfloat16
    got = model(image).last_hidden_state
    assert got.dtype == half.dtype and (got - half).abs().mean() < 0.05 * half.abs().mean()
    model.float()
    with torch.autocast('cpu', torch.bfloat16):
        got = model(image).last_hidden_state
    assert got.dtype == cast.dtype and (got - cast).abs().mean() < 0.05 * cast.abs().mean()


@torch.no_grad()
def test_patches_are_chosen_before_the_image_is_rounded():
    """CLIP's normalisation puts two grey levels on one number of bfloat16."""
    model, image = build('CLIPVisionModel'), smooth_and_busy(64, 64)
    encoder, = hf.packed_encoders(hf.adapt(model, 2, (2.5,))).values()
    model(image)
    wanted = encoder.last_layout.scales
    model.bfloat16()(image)
    assert torch.equal(encoder.last_layout.scales, wanted)
    with pytest.raises(ValueError, match='give the image in float32'):
        model(image.bfloat16())


@torch.no_grad()
def test_a_language_model_that_looks_through_clip():
    """LLaVA asks for one hidden state, by its number from the end."""
    t = transformers()
    language = dict(model_type='llama', vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                    num_attention_heads=2, num_key_value_heads=2)
    model = randomised(t.LlavaForConditionalGeneration(t.LlavaConfig(
        text_config=language, vision_config=dict(MLP, model_type='clip_vision_model'), image_token_index=7))).eval()
    call = dict(input_ids=torch.tensor([[1, *[7] * 16, 2]]), pixel_values=torch.randn(1, 3, 64, 64))
    wanted = model(**call).logits
    assert (hf.adapt(model, 3, (-1, -1))(**call).logits - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert list(hf.packed_encoders(model)) == ['model.vision_tower']
