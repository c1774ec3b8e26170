"""Merged patches, and what adapt finds, takes and refuses."""
import copy
import pickle
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from apt_dense import APTDINOv3, APTViT, PackedViT
from tests.hf.models import FLAG, SIZES, build, sam3, smooth_and_busy, transformers

transformers_package = transformers()
from apt_dense import hf  # noqa: E402

THRESHOLDS = (2.5, 2.0)
LAYER = {  # the core's names -> transformers', in a layer
    'ViTModel': {'norm1': 'layernorm_before', 'norm2': 'layernorm_after', 'attn.proj': 'attention.o_proj',
                 'mlp.fc1': 'mlp.fc1', 'mlp.fc2': 'mlp.fc2'},
    'DINOv3ViTModel': {'norm1': 'norm1', 'norm2': 'norm2', 'attn.proj': 'attention.o_proj', 'mlp.fc1': 'mlp.up_proj',
                       'mlp.fc2': 'mlp.down_proj'}}


def core_model(model: nn.Module) -> PackedViT:
    """The core's model with a copy of the parameters of ViTModel or DINOv3ViTModel, and of those added to it."""
    sizes = dict(img_size=64, embed_dims=32, depth=3, num_heads=2, mlp_ratio=2, num_scales=3, thresholds=THRESHOLDS)
    source, kind, state = model.state_dict(), type(model).__name__, {}
    if kind == 'ViTModel':
        core = APTViT(**sizes, pretrain_img_size=64, img_mean=(127.5,) * 3, img_std=(127.5,) * 3, norm_eps=1e-12)
        layers, projection, norm = 'layers', 'embeddings.patch_embeddings.projection', 'layernorm'
        state['pos_embed'] = source['embeddings.position_embeddings']
    else:
        core, layers = APTDINOv3(**sizes, layer_scale=1.0), 'model.layer'
        projection, norm = 'embeddings.patch_embeddings', 'norm'
        state['reg_token'] = source['embeddings.register_tokens']
    state['cls_token'] = source['embeddings.cls_token']
    names = {'patch_embed.proj': projection, 'norm': norm, 'patch_embed.conv_down': 'apt.conv_down',
             'patch_embed.zero_mlp': 'apt.zero_mlp'}
    for index in range(3):
        names |= {f'blocks.{index}.{own}': f'{layers}.{index}.{name}' for own, name in LAYER[kind].items()}
        names |= {f'blocks.{index}.attn.{name}': f'{layers}.{index}.attention.{name}'
                  for name in ('q_proj', 'k_proj', 'v_proj')}
        if kind != 'ViTModel':
            state |= {f'blocks.{index}.ls{n}.gamma': source[f'{layers}.{index}.layer_scale{n}.lambda1'] for n in (1, 2)}
    state |= {f'{own}.{part}': source[f'{name}.{part}'] for own, name in names.items() for part in ('weight', 'bias')
              if f'{name}.{part}' in source}
    core.load_state_dict(state)
    return core.eval()


@torch.no_grad()
@pytest.mark.parametrize(('kind', 'arguments'), [('ViTModel', FLAG), ('DINOv3ViTModel', {})])
def test_merged_rows_are_the_cores_over_their_cells(kind, arguments):
    model, image = hf.adapt(build(kind), 3, THRESHOLDS), smooth_and_busy()
    nn.init.normal_(model.apt.zero_mlp.weight, std=0.2)
    rows, layout = core_model(model).forward_tokens(image)
    output = model(image, **arguments).last_hidden_state
    assert all(layout.scale_counts) and len(set(layout.images.lengths)) == 2
    assert layout.scale_counts == model.apt.last_layout.scale_counts
    prefix = layout.num_prefix
    for index, (got, own) in enumerate(zip(output, rows.split(layout.images.lengths), strict=True)):
        assert torch.allclose(got[:prefix], own[:prefix], atol=1e-5)
        assert torch.allclose(got[prefix:], layout.expand(rows)[index].flatten(1).T, atol=1e-5)


@torch.no_grad()
def test_thresholds_can_be_set_and_the_layout_seen():
    model, image = hf.adapt(build('Dinov2ForImageClassification'), 3, (-1, -1)), smooth_and_busy()
    (name, encoder), = hf.packed_encoders(model).items()
    dense = model(image).logits
    assert name == 'dinov2' and encoder.last_layout.is_dense
    encoder.thresholds = model.dinov2.apt.thresholds = THRESHOLDS
    assert not torch.equal(model(image).logits, dense) and not model.dinov2.apt.last_layout.is_dense


@torch.no_grad()
def test_options_reach_the_encoder():
    image = smooth_and_busy()
    options = dict(scorer='laplacian_mean', max_tokens=20, detail_branch='none', rope_anchor='center',
                   pos_anchor='corner', attn_backend='sdpa')
    model = hf.adapt(build('DINOv3ViTModel'), 3, (0.0, 0.0), **options)
    once = model(image).last_hidden_state
    counted = hf.adapt(build('DINOv3ViTModel'), 3, (0.0, 0.0), **options, proportional_attention=True)
    assert not torch.allclose(counted(image).last_hidden_state, once, atol=1e-4)
    assert max(model.apt.last_layout.images.lengths) <= 20 + 5 and not list(model.apt.parameters())
    assert (model.apt.packed.rope_anchor, model.apt.packed.pos_anchor) == ('center', 'corner')
    with pytest.raises(TypeError, match=r"no options \['window_size'\]: it has \['scorer'"):
        hf.adapt(build('DINOv3ViTModel'), 3, (-1, -1), window_size=2)
    with pytest.raises(ValueError, match='unknown scorer'):
        hf.adapt(build('DINOv3ViTModel'), 3, (-1, -1), scorer='guess')


def test_normalisation_is_the_familys_or_the_image_processors():
    chooser = hf.adapt(build('ViTModel'), 2, (-1,)).apt.packed.chooser
    assert chooser.img_mean == chooser.img_std == (127.5,) * 3
    processor = SimpleNamespace(image_mean=[0.5, 0.4, 0.3], image_std=[0.2] * 3, rescale_factor=1 / 255)
    for given in (processor, SimpleNamespace(image_processor=processor)):
        chooser = hf.adapt(build('ViTModel'), 2, (-1,), image_processor=given).apt.packed.chooser
        assert chooser.img_mean == pytest.approx((127.5, 102, 76.5)) and chooser.img_std == pytest.approx((51,) * 3)
    processor.do_normalize = False
    assert hf.adapt(build('ViTModel'), 2, (-1,), image_processor=processor).apt.packed.chooser.img_std == (255,) * 3
    processor.do_rescale = False
    assert hf.adapt(build('ViTModel'), 2, (-1,), image_processor=processor).apt.packed.chooser.img_std == (1,) * 3
    with pytest.raises(ValueError, match='does not normalise by image_mean and image_std alone'):
        hf.adapt(build('ViTModel'), 2, (-1,), image_processor=SimpleNamespace())


@torch.no_grad()
def test_all_encoders_or_those_in_one_submodule():
    pair = nn.ModuleDict({'left': build('Dinov2Model'), 'right': build('ViTForImageClassification')})
    one = hf.adapt(copy.deepcopy(pair), 2, (-1,), submodule='right')
    assert list(hf.packed_encoders(one)) == ['right.vit']
    assert list(hf.packed_encoders(hf.adapt(pair, 2, (-1,)))) == ['left', 'right.vit']
    with pytest.raises(ValueError, match="ModuleDict has no submodule 'middle'"):
        hf.adapt(pair, 2, (-1,), submodule='middle')
    with pytest.raises(ValueError, match=r"left is adapted already: set packed_encoders\(model\)\['left'\].thresholds"):
        hf.adapt(pair, 2, (-1,))


@torch.no_grad()
@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
                         ids=['deepcopy', 'pickle'])
def test_a_copy_has_weights_of_its_own(duplicate):
    model, image = hf.adapt(build('CLIPVisionModel'), 2, (2.5,)), smooth_and_busy(64, 64)
    wanted, other = model(image).last_hidden_state, duplicate(model)
    assert torch.equal(other(image).last_hidden_state, wanted)
    for parameter in other.parameters():
        parameter.mul_(0.5)
    assert not torch.equal(other(image).last_hidden_state, wanted)
    assert torch.equal(model(image).last_hidden_state, wanted)


@torch.no_grad()
@pytest.mark.parametrize('kind', ['CLIPVisionModel', 'DINOv3ViTModel'])
def test_parameters_that_are_replaced_are_followed(kind):
    """load_state_dict(assign=True), and a model that was adapted on the meta device."""
    image = smooth_and_busy(64, 64)
    model, wanted = hf.adapt(build(kind), 2, (2.5,)), hf.adapt(build(kind), 2, (2.5,))
    state = wanted.state_dict()
    model(image)
    model.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
    assert torch.equal(model(image)[0], wanted(image)[0])
    with torch.device('meta'):
        empty = type(model)(model.config).eval()
    hf.adapt(empty, 2, (2.5,))
    assert {parameter.device.type for parameter in empty.parameters()} == {'meta'}
    empty.load_state_dict(state, assign=True)
    for name, buffer in model.named_buffers():  # files do not have them
        parent, _, part = name.rpartition('.')
        setattr(empty.get_submodule(parent), part, buffer)
    assert torch.equal(empty(image)[0], wanted(image)[0])


def unsupported(kind: str, config: str, **settings) -> nn.Module:
    return getattr(transformers_package, kind)(getattr(transformers_package, config)(**settings))


SMALL = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)


@pytest.mark.parametrize(('kind', 'config', 'settings', 'reason'), [
    ('BeitModel', 'BeitConfig', SMALL, 'BeitModel cannot have packed tokens: it adds a relative-position bias'),
    ('Data2VecVisionModel', 'Data2VecVisionConfig', SMALL, 'relative-position bias'),
    ('VitDetModel', 'VitDetConfig', SMALL, 'relative-position bias'),
    ('SamVisionModel', 'SamVisionConfig', dict(SMALL, output_channels=8, global_attn_indexes=[]),
     'relative-position bias'),
    ('SwinModel', 'SwinConfig', dict(embed_dim=12, depths=[1, 1], num_heads=[1, 1]), 'windows are shifted'),
    ('Swinv2Model', 'Swinv2Config', dict(embed_dim=12, depths=[1, 1], num_heads=[1, 1]), 'windows are shifted'),
    ('HieraModel', 'HieraConfig', dict(embed_dim=12, depths=[1, 1], num_heads=[1, 1], num_query_pool=1), 'pools its'),
    ('ViTMAEForPreTraining', 'ViTMAEConfig', SMALL, 'shuffles patches at random: open the checkpoint as ViTModel'),
    ('ViTMSNModel', 'ViTMSNConfig', SMALL, r"no vision encoder that can be packed, it has \['ViTMSNModel'\]. Supported "
                                           'are DINOv3ViTModel, '),
    ('BertModel', 'BertConfig', dict(SMALL, vocab_size=8), r"it has \['BertModel'\]")])
def test_other_encoders_are_refused_by_name(kind, config, settings, reason):
    with pytest.raises(ValueError, match=reason):
        hf.adapt(unsupported(kind, config, **settings), 2, (-1,))


def test_a_model_of_others_is_refused():
    with pytest.raises(ValueError, match='Linear holds no vision encoder .* no module of transformers'):
        hf.adapt(nn.Linear(2, 2), 2, (-1,))


@pytest.mark.parametrize(('kind', 'settings', 'reason'), [
    ('DINOv3ViTModel', dict(use_gated_mlp=True, hidden_act='gelu'), 'gated MLP with GELUActivation, wanted SiLU'),
    ('ViTModel', dict(num_channels=4), 'of 4 channels: wanted squares of 3'),
    ('Dinov2Model', dict(patch_size=[16, 8]), r'patches of \(16, 8\) px'),
    ('ViTModel', dict(head_dim=8), 'heads of ViTModel have 16 channels together, wanted its width, 32'),
    ('ViTModel', dict(image_size=(64, 128)), r'has 32 entries, wanted those of a square: image_size=\(64, 128\)')])
def test_parts_that_the_core_does_not_have_are_refused(kind, settings, reason):
    model = build(kind, **settings)
    with pytest.raises(ValueError, match=reason):
        hf.adapt(model, 2, (-1,))
    assert not hf.packed_encoders(model) and 'forward' not in vars(model)


def test_changed_layers_are_refused_before_and_after():
    model = build('ViTModel')
    model.layers[1].mlp.fc1 = nn.Sequential(model.layers[1].mlp.fc1)
    model.layers[1].mlp.fc1.out_features = 64
    with pytest.raises(ValueError, match=r'layers.1.mlp.fc1 is a Sequential, wanted a plain Linear: adapt the model'):
        hf.adapt(model, 2, (-1,))
    model = build('ViTModel')
    model.layers[1].adapter = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"packed tokens would not see: \['layers.1.adapter.weight'"):
        hf.adapt(model, 2, (-1,))
    model = hf.adapt(build('ViTModel'), 2, (-1,))
    model.layers[2] = copy.deepcopy(model.layers[2])
    with pytest.raises(RuntimeError, match="'2' in ModuleList was replaced after apt_dense.hf.adapt"):
        model(torch.randn(1, 3, 64, 64))
    model = hf.adapt(build('ViTModel'), 2, (-1,))
    nn.utils.parametrize.register_parametrization(model.layers[0].attention.q_proj, 'weight', nn.Identity())
    with pytest.raises(RuntimeError, match="'weight' of a ParametrizedLinear is no parameter any more"):
        model(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize('weight', [torch.zeros(32, 32, dtype=torch.int8), torch.zeros(32, 32).as_subclass(
    type('Sharded', (torch.Tensor,), {}))], ids=['quantised', 'sharded'])
def test_weights_of_another_kind_are_refused(weight):
    model = build('ViTModel')
    model.layers[0].attention.q_proj.weight = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(ValueError, match='layers.0.attention.q_proj .* before its layers are quantised, sharded'):
        hf.adapt(model, 2, (-1,))


def test_a_class_of_ones_own():
    """It is what it builds on, unless it has a forward pass of its own, which packed tokens would not follow."""
    kind = transformers_package.ViTModel
    same, other = type('Same', (kind,), {}), type('Other', (kind,), {'forward': lambda self, x: x})
    assert list(hf.packed_encoders(hf.adapt(same(build('ViTModel').config), 2, (-1,)))) == ['']
    with pytest.raises(ValueError, match=r"Other holds no vision encoder that can be packed, it has \['Other'\]"):
        hf.adapt(other(build('ViTModel').config), 2, (-1,))


def test_an_encoder_on_two_devices_or_offloaded_is_refused():
    model = build('ViTModel')
    model.layers[2].to('meta')
    with pytest.raises(ValueError, match=r"is on \['cpu', 'meta'\]: packed tokens need it on one device"):
        hf.adapt(model, 2, (-1,))
    model = build('ViTModel')
    model.layers[0]._hf_hook = object()
    with pytest.raises(ValueError, match='hooks of accelerate that offload it: packed tokens need it on one device'):
        hf.adapt(model, 2, (-1,))


@pytest.mark.parametrize(('arguments', 'reason'), [
    (dict(output_attentions=True), 'got output_attentions, which packed tokens do not take: .* no attention maps'),
    (dict(bool_masked_pos=torch.zeros(2, 32, dtype=torch.bool)), 'masked image modelling needs the model as it was'),
    (dict(attention_mask=torch.ones(2, 33)), 'packed tokens attend to all others'),
    (dict(head_mask=torch.ones(3, 2)), 'cannot leave heads out'),
    (dict(position_ids=torch.ones(2)), 'knows no such argument of an encoder')])
def test_arguments_without_effect_are_refused(arguments, reason):
    model = hf.adapt(build('Dinov2ForImageClassification'), 2, (-1,))
    with pytest.raises(ValueError, match=reason):
        model.dinov2(torch.randn(2, 3, 64, 128), **arguments)


def test_attentions_that_the_config_asks_for_are_refused():
    model = hf.adapt(build('DINOv3ViTModel', output_attentions=True, attn_implementation='eager'), 2, (-1,))
    with pytest.raises(ValueError, match='got output_attentions'):
        model(torch.randn(2, 3, 64, 64))


@torch.no_grad()
def test_images_that_do_not_fit_are_refused_with_the_size_that_does():
    model = hf.adapt(build('DINOv3ViTModel'), 3, (-1, -1))
    text = 'the image is 96x128 px, and with num_scales=3 over patches of 16 px the sides must be multiples of 64 px: '
    with pytest.raises(ValueError, match=text + 'resize or pad to 128x128, by the image processor'):
        model(torch.randn(2, 3, 96, 128))
    model = hf.adapt(build('ViTModel', image_size=96), 3, (-1, -1))
    with pytest.raises(ValueError, match='pad to 128x128, .* and interpolate_pos_encoding=True; or use fewer'):
        model(torch.randn(2, 3, 96, 96))
    with pytest.raises(ValueError, match='is 128x128 px, and ViTModel is configured for 96x96: .* or pass interpolate'):
        model(torch.randn(2, 3, 128, 128))
    with pytest.raises(ValueError, match=re.escape('got pixel_values (3, 64, 64), wanted (B, 3, H, W)')):
        model(torch.randn(3, 64, 64))
    with pytest.raises(ValueError, match='got pixel_values None'):
        model()
    with pytest.raises(ValueError, match='ViTModel is on cpu, and got an image on meta: move one'):
        model(torch.randn(2, 3, 96, 96, device='meta'))


def test_sam3_takes_its_own_size_in_whole_windows():
    model = hf.adapt(sam3(), 3, (-1, -1))
    with pytest.raises(ValueError, match='is 56x112 px, and Sam3ViTModel is configured for 112x112: resize to that'):
        model.vision_encoder(torch.randn(1, 3, 56, 112))
    with pytest.raises(ValueError, match='no interpolate_pos_encoding: its positions are tiled'):
        model.vision_encoder(torch.randn(1, 3, 112, 112), interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match='image_size=84, window_size=4, rope_theta=10000.*: .* multiples of 56 px'):
        hf.adapt(sam3(84), 3, (-1, -1))
    with pytest.raises(ValueError, match='window_size=4 is not a multiple of the largest patch, 8 cells'):
        hf.adapt(sam3(), 4, (-1, -1, -1))


def test_a_backbone_in_a_larger_model():
    """A DPT on DINOv2, which asks its backbone for feature maps."""
    config = transformers_package.Dinov2Config(**SIZES, mlp_ratio=2, reshape_hidden_states=False, apply_layernorm=False,
                                               out_features=['stem', 'stage1', 'stage2', 'stage3'])
    model = transformers_package.DepthAnythingForDepthEstimation(transformers_package.DepthAnythingConfig(
        backbone_config=config, reassemble_hidden_size=32, patch_size=16, neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8, head_hidden_size=8)).eval()
    image = torch.randn(2, 3, 64, 128)
    with torch.no_grad():
        wanted = model(image).predicted_depth
        got = hf.adapt(model, 3, (-1, -1))(image).predicted_depth
    assert (got - wanted).abs().max() < 1e-5 and list(hf.packed_encoders(model)) == ['backbone']
