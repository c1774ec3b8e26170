"""Training of adapted models, and what they leave to files."""
import inspect
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.hf.models import MLP, build, smooth_and_busy, transformers

transformers_package = transformers()
from apt_dense import hf  # noqa: E402

KINDS = ['DINOv3ViTModel', 'Dinov2ForImageClassification', 'Dinov2WithRegistersModel', 'ViTForImageClassification',
         'CLIPVisionModel']


def adapted(kind: str, thresholds: tuple[float, ...] = (2.5, 2.0), **settings) -> nn.Module:
    model = hf.adapt(build(kind, **settings), 3, thresholds)
    nn.init.normal_(next(iter(hf.packed_encoders(model).values())).patch_embed.zero_mlp.weight, std=0.2)
    return model


def gradients(model: nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    model(image)[0].square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize('thresholds', [(2.5, 2.0), (-1, -1)], ids=['merged', 'dense'])
@pytest.mark.parametrize('kind', KINDS)
def test_every_parameter_has_a_gradient(kind, thresholds):
    """Except for what a dense model's pass does not reach either: mask tokens, and CLIP's norm of the pooled row."""
    model = adapted(kind, thresholds).train()
    missing = {name.rpartition('embeddings.')[2] for name, grad in gradients(model, smooth_and_busy(64, 64)).items()
               if grad is None or not grad.isfinite().all()}
    assert missing <= {'mask_token', 'post_layernorm.weight', 'post_layernorm.bias'}


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_are_those_of_the_dense_model(kind):
    model, image = build(kind), torch.randn(2, 3, 64, 64)
    wanted = gradients(model, image)
    got = gradients(hf.adapt(model, 3, (-1, -1)), image)
    for name, grad in wanted.items():
        assert (grad is None) == (got[name] is None)
        assert grad is None or (got[name] - grad).abs().max() <= 1e-4 * max(1, grad.abs().max()), name


def test_a_step_of_the_optimiser_changes_the_next_pass():
    model, image = adapted('CLIPVisionModel').train(), smooth_and_busy(64, 64)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model(image)[0]
    before.square().mean().backward()
    optimiser.step()
    after = model(image)[0]
    other = adapted('CLIPVisionModel')
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(image)[0], after) and not torch.allclose(before, after)


@pytest.mark.parametrize('kind', ['DINOv3ViTModel', 'ViTForImageClassification'])
def test_gradient_checkpointing_is_followed(kind, monkeypatch):
    model, image = adapted(kind).train(), smooth_and_busy(64, 64)
    encoder, = hf.packed_encoders(model).values()
    wanted, calls = gradients(model, image), []
    monkeypatch.setattr(encoder.blocks[0], 'forward', lambda *args: calls.append(1) or type(encoder.blocks[0]).forward(
        encoder.blocks[0], *args))
    model.activation_checkpointing_enable()
    got = gradients(model, image)
    assert len(calls) == 2  # forwards, and again backwards
    assert all(grad is None or torch.allclose(got[name], grad, atol=1e-6) for name, grad in wanted.items())
    model.activation_checkpointing_disable()
    gradients(model, image)
    assert len(calls) == 3


def test_drop_path_is_that_of_the_config():
    """One rate in all blocks; drawn for each image."""
    model, image = adapted('Dinov2Model', drop_path_rate=0.5), torch.randn(2, 3, 64, 64)
    assert [block.drop_path.rate for block in model.apt.packed.blocks] == [0.5] * 3
    assert torch.equal(model(image)[0], model(image)[0])
    model.train()
    assert not torch.equal(model(image)[0], model(image)[0])
    assert torch.equal(model.eval()(image)[0], model(image)[0])


@pytest.mark.parametrize(('kind', 'settings', 'reason'), [
    ('ViTModel', dict(hidden_dropout_prob=0.1), r"with dropout in \['embeddings.dropout', 'layers.0.dropout'"),
    ('Dinov2Model', dict(attention_probs_dropout_prob=0.1), r"with dropout in \['encoder.layer.0.attention'"),
    ('CLIPVisionModel', dict(attention_dropout=0.1), r"with dropout in \['encoder.layers.0.self_attn'"),
    ('DINOv3ViTModel', dict(attention_dropout=0.1), r"with dropout in \['model.layer.0.attention'"),
    ('DINOv3ViTModel', dict(pos_embed_rescale=2.0, pos_embed_jitter=1.5),
     r"by \['pos_embed_jitter', 'pos_embed_rescale'\], which .* set model.config.pos_embed_jitter = None")])
def test_other_noise_in_training_is_refused(kind, settings, reason):
    model, image = adapted(kind, **settings), torch.randn(2, 3, 64, 64)
    model(image)
    with pytest.raises(ValueError, match=reason):
        model.train()(image)


@pytest.mark.parametrize('kind', ['CLIPVisionModel', 'Dinov2Model'])
def test_training_after_inference_mode(kind):
    model, image = adapted(kind), smooth_and_busy(64, 64)
    wanted = gradients(model, image)
    with torch.inference_mode():
        first = model(image)[0]
    got = gradients(model, image)
    with torch.inference_mode():
        assert torch.equal(model(image)[0], first)
    assert all(grad is None or torch.allclose(got[name], grad) for name, grad in wanted.items())


def test_a_mode_forgets_what_was_kept_of_parameters():
    """Averages of weights are written through ``.data``, which no version counts."""
    model, image = adapted('ViTModel'), smooth_and_busy(64, 64)
    with torch.no_grad():
        before = model(image)[0]
        model.embeddings.position_embeddings.data.mul_(2)
        after = model.eval()(image)[0]
    assert not torch.equal(before, after)


@pytest.mark.parametrize('kind', [*KINDS, 'CLIPModel'])
def test_saved_and_opened_again(kind, tmp_path):
    """By save_pretrained, from_pretrained, adapt and load_added."""
    model, image = adapted(kind), smooth_and_busy(64, 64)
    call = dict(pixel_values=image, **(dict(input_ids=torch.tensor([[0, 3, 1]])) if kind == 'CLIPModel' else {}))
    model.save_pretrained(tmp_path, max_shard_size='40KB')
    other, told = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not told['missing_keys'] and all('apt.' in name for name in told['unexpected_keys'])
    hf.adapt(other.eval(), 3, (2.5, 2.0))
    with torch.no_grad():
        assert not torch.allclose(other(**call)[0], model(**call)[0], atol=1e-4)
        hf.load_added(other, tmp_path)
        assert torch.allclose(other(**call)[0], model(**call)[0], atol=1e-5)
        other.load_state_dict(model.state_dict())
    assert len(list(tmp_path.glob('*.safetensors'))) > 1


def test_settings_of_the_saved_model_are_compared(tmp_path, recwarn):
    model = build('ViTModel')
    hf.adapt(model, 3, (2.5, 2.0), proportional_attention=True, compiled=False)
    model.save_pretrained(tmp_path)

    def opened(**options):
        other = type(model).from_pretrained(tmp_path)
        hf.adapt(other, 3, (1.0, 1.0), **options)
        recwarn.clear()
        hf.load_added(other, tmp_path)
        return [str(warning.message) for warning in recwarn if issubclass(warning.category, UserWarning)]

    assert opened(proportional_attention=True) == []
    (told,) = opened(scorer='variance')
    assert told.startswith("this model was adapted with proportional_attention=False, the saved one True; "
                           "scorer='variance', the saved one 'entropy': ")


def test_added_parameters_that_do_not_fit_are_refused(tmp_path):
    model = adapted('ViTForImageClassification')
    with pytest.raises(ValueError, match='has no added parameters: call apt_dense.hf.adapt first'):
        hf.load_added(build('ViTModel'), tmp_path)
    with pytest.raises(ValueError, match='holds no .safetensors file'):
        hf.load_added(model, tmp_path)
    build('ViTForImageClassification').save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='vit.apt.conv_down.weight is missing, .* The source has none'):
        hf.load_added(model, tmp_path)
    state = {**model.state_dict(), 'vit.apt.zero_mlp.bias': torch.zeros(8)}
    with pytest.raises(ValueError, match=r'vit.apt.zero_mlp.bias is \(8,\) there and \(32,\) here'):
        hf.load_added(model, state)


def test_added_parameters_by_the_end_of_their_name():
    """As transformers writes LLaVA's; a name that two tensors end with says nothing."""
    model, other = adapted('ViTForImageClassification'), adapted('ViTForImageClassification')
    short = {name.removeprefix('vit.'): value for name, value in model.state_dict().items() if '.apt.' in name}
    hf.load_added(other, short)
    assert torch.equal(other.vit.apt.zero_mlp.weight, model.vit.apt.zero_mlp.weight)
    twice = {f'{place}.vit.{name}': value for name, value in short.items() for place in ('a', 'b')}
    with pytest.raises(ValueError, match='vit.apt.conv_down.weight is missing'):
        hf.load_added(other, twice)


def test_weights_of_mae_open_as_vit(tmp_path):
    """As the refusal of ViTMAEModel says."""
    source = transformers_package.ViTMAEModel(transformers_package.ViTMAEConfig(**MLP))
    source.save_pretrained(tmp_path)
    model = transformers_package.ViTModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in source.state_dict().items())


def test_a_trainer_sees_the_arguments_of_the_model():
    model = build('ViTModel')
    wanted = inspect.signature(model.forward)
    assert inspect.signature(hf.adapt(model, 2, (-1,)).forward) == wanted


@pytest.mark.slow
def test_apt_dense_alone_leaves_transformers_out():
    script = "import sys, apt_dense\nassert 'transformers' not in sys.modules\nsys.modules['transformers'] = None\n" \
             'import apt_dense.hf'
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=120)
    assert "transformers is not installed. What is needed here is in the extra 'hf'" in done.stderr
