"""Learning rates and weight decays worked out by hand; what the constructor does not know is an error."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

import apt_dense
from apt_dense.core.embed import ADDED_PARAMETERS
from apt_dense.mm.training.layer_decay import APTLayerDecayOptimWrapperConstructor, layer_id
from tests.locations import CONFIGS

LR, WEIGHT_DECAY = 0.8, 0.1
RECIPE = dict(layer_decay_rate=0.5, num_layers=2)
SEGMENTATION = dict(flat_decay_mult=0.0, no_weight_decay_keys=('pos_embed', 'cls_token'))


class Toy(nn.Module):
    """A segmentor in outline: two blocks, a class token, APT's additions, a neck and a head."""

    def __init__(self):
        super().__init__()
        self.backbone = apt_dense.APTEVA02(
            img_size=64, embed_dims=8, depth=2, num_heads=2, window_size=0, global_block_indexes=(), num_scales=2,
            thresholds=(2.0,), with_cls_token=True, pretrain_img_size=32)
        self.neck = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
        self.decode_head = nn.Conv2d(4, 3, 1)


@pytest.fixture
def model():
    return Toy()


def build(model, lr=LR, weight_decay=WEIGHT_DECAY, **paramwise_cfg) -> OptimWrapper:
    return build_optim_wrapper(model, dict(
        constructor='APTLayerDecayOptimWrapperConstructor', paramwise_cfg=paramwise_cfg,
        optimizer=dict(type='AdamW', lr=lr, weight_decay=weight_decay)))


def settings_of(wrapper: OptimWrapper, model: nn.Module) -> dict[str, tuple[float, float]]:
    """{name: (lr, weight decay)}; a parameter in two groups, or one that is not the model's, fails."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings = {}
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            assert names[id(parameter)] not in settings
            settings[names[id(parameter)]] = group['lr'], group['weight_decay']
    return settings


def test_toy_with_the_detection_recipe(model):
    wrapper = build(model, **RECIPE)
    settings = settings_of(wrapper, model)
    assert settings.keys() == {name for name, _ in model.named_parameters()}
    expected = {
        'backbone.pos_embed': (0.1, 0.1),  # 0.8 * 0.5**3
        'backbone.cls_token': (0.1, 0.1),
        'backbone.patch_embed.proj.weight': (0.1, 0.1),
        'backbone.patch_embed.proj.bias': (0.1, 0.1),
        'backbone.blocks.0.norm1.weight': (0.2, 0.1),  # 0.8 * 0.5**2
        'backbone.blocks.0.attn.q_bias': (0.2, 0.1),
        'backbone.blocks.1.mlp.w3.weight': (0.4, 0.1),  # 0.8 * 0.5
        'backbone.patch_embed.conv_down.weight': (0.8, 0.1),
        'backbone.patch_embed.zero_mlp.bias': (0.8, 0.1),
        'neck.0.weight': (0.8, 0.1),
        'neck.1.bias': (0.8, 0.1),
        'decode_head.bias': (0.8, 0.1),
    }
    assert {name: settings[name] for name in expected} == expected
    assert [group['lr'] for group in wrapper.optimizer.param_groups] == [0.8, 0.4, 0.2, 0.1]  # the log shows the first


def test_added_parameters_at_the_rate_of_layer_0(model):
    settings = settings_of(build(model, **RECIPE, added_params_full_lr=False), model)
    assert all(settings[f'backbone.{name}'] == (0.1, 0.1) for name in ADDED_PARAMETERS)
    assert settings['decode_head.weight'] == (0.8, 0.1)
    full = settings_of(build(model, **RECIPE, added_params_full_lr=True), model)
    assert all(full[f'backbone.{name}'] == (0.8, 0.1) for name in ADDED_PARAMETERS)


def test_toy_with_the_segmentation_recipe(model):
    """No decay on anything flat (biases, norms), nor on the position table and the class token; rates are the same."""
    settings = settings_of(build(model, **RECIPE, **SEGMENTATION), model)
    detection = settings_of(build(model, **RECIPE), model)
    assert {name: lr for name, (lr, _) in settings.items()} == {name: lr for name, (lr, _) in detection.items()}
    assert {name for name, (_, decay) in settings.items() if decay} == {
        *(f'backbone.patch_embed.{name}.weight' for name in ('proj', 'conv_down', 'zero_mlp')),
        *(f'backbone.blocks.{index}.{name}.weight' for index in range(2) for name in (
            'attn.q_proj', 'attn.k_proj', 'attn.v_proj', 'attn.proj', 'mlp.w1', 'mlp.w2', 'mlp.w3')),
        'neck.0.weight', 'decode_head.weight'}
    assert {decay for _, decay in settings.values()} == {0.0, 0.1}


def test_flat_decay_mult_is_a_factor(model):
    settings = settings_of(build(model, **RECIPE, flat_decay_mult=0.5), model)
    assert settings['neck.1.weight'] == (0.8, 0.05)
    assert settings['backbone.cls_token'] == (0.1, 0.1)  # (1, 1, C) is not flat


def test_no_weight_decay_keys_are_parts_of_names(model):
    settings = settings_of(build(model, **RECIPE, no_weight_decay_keys=['neck', 'q_bias']), model)
    assert {name for name, (_, decay) in settings.items() if not decay} == {
        'neck.0.weight', 'neck.0.bias', 'neck.1.weight', 'neck.1.bias', 'backbone.blocks.0.attn.q_bias',
        'backbone.blocks.1.attn.q_bias'}


# 0.7**13 = 0.00968890104, 0.7**12 = 0.0138412872; 0.8**25 = 0.0037778931863, 0.8**24 = 0.00472236648287.
DETECTORS = [('b', 0.00968890104, 0.0138412872, 11, 0.7), ('l', 0.0037778931863, 0.00472236648287, 23, 0.8)]


@pytest.mark.parametrize(('size', 'first', 'block_0', 'last_block', 'rate'), DETECTORS)
def test_detectors_of_the_configs(size, first, block_0, last_block, rate):
    cfg = Config.fromfile(CONFIGS / f'apt_eva02_{size}_coco_full.py')
    with torch.device('meta'):
        detector = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(detector, cfg.optim_wrapper)
    settings = settings_of(wrapper, detector)
    assert settings.keys() == {name for name, _ in detector.named_parameters()}
    assert {decay for _, decay in settings.values()} == {0.1}
    scales = {name: lr / 5e-5 for name, (lr, _) in settings.items()}
    expected = {
        'backbone.pos_embed': first,
        'backbone.patch_embed.proj.weight': first,
        'backbone.patch_embed.proj.bias': first,
        'backbone.blocks.0.norm1.weight': block_0,
        'backbone.blocks.0.mlp.ffn_ln.bias': block_0,
        'backbone.blocks.1.attn.q_bias': block_0 / rate,
        f'backbone.blocks.{last_block}.attn.proj.weight': rate,
        'neck.simfp_2.0.weight': 1,
        'rpn_head.rpn_cls.bias': 1,
        'roi_head.bbox_head.2.fc_cls.weight': 1,
        'roi_head.mask_head.conv_logits.weight': 1,
        **{f'backbone.{name}': 1 for name in ADDED_PARAMETERS},
    }
    assert {name: scales[name] for name in expected} == pytest.approx(expected, rel=1e-8)
    assert len(wrapper.optimizer.param_groups) == last_block + 3
    layer_0 = {name for name, scale in scales.items() if scale == pytest.approx(first)}
    assert layer_0 == {'backbone.pos_embed', 'backbone.patch_embed.proj.weight', 'backbone.patch_embed.proj.bias'}


@pytest.mark.parametrize(('name', 'layer'), [
    ('backbone.pos_embed', 0), ('backbone.cls_token', 0), ('backbone.patch_embed.proj.weight', 0),
    ('backbone.patch_embed.proj.bias', 0), ('backbone.blocks.0.norm1.weight', 1), ('backbone.reg_token', 0),
    ('backbone.norm_pre.bias', 0), ('backbone.norm.weight', 13), ('backbone.blocks.3.ls1.gamma', 4),
    ('backbone.blocks.11.mlp.w3.bias', 12),
    ('backbone.patch_embed.conv_down.weight', 13), ('neck.simfp_2.0.weight', 13), ('backbone_neck.pos_embed', 13)])
def test_layers_of_names(name, layer):
    assert layer_id(name, 12) == layer
    is_added = 'conv_down' in name
    assert layer_id(name, 12, added_params_full_lr=False) == (0 if is_added else layer)


@pytest.mark.parametrize('name', [
    'backbone.norm1.weight', 'backbone.layers.3.weight', 'backbone.rel_pos_embed', 'backbone.pos_embed.scale',
    'backbone.patch_embed.norm.weight', 'backbone.patch_embed.proj.weight_scale', 'backbone.blocks.norm.weight'])
def test_names_without_a_layer(name):
    with pytest.raises(ValueError, match=f"'{name}' has no layer: the backbone has pos_embed, "):
        layer_id(name, 12)


def test_a_block_beyond_num_layers():
    with pytest.raises(ValueError, match=r"'backbone\.blocks\.12\.norm1\.bias' lies beyond num_layers=12: set"):
        layer_id('backbone.blocks.12.norm1.bias', 12)


@pytest.mark.parametrize('frozen', [False, True])
def test_an_unknown_parameter_of_the_backbone_is_named(model, frozen):
    model.backbone.fc_norm = nn.LayerNorm(8).requires_grad_(not frozen)
    with pytest.raises(ValueError, match=r"'backbone\.fc_norm\.weight' has no layer"):
        build(model, **RECIPE)


@pytest.mark.parametrize('num_layers', [1, 3])
def test_num_layers_is_the_depth(model, num_layers):
    with pytest.raises(ValueError, match=f'num_layers={num_layers} but the model has 2 blocks named backbone.blocks.N'):
        build(model, layer_decay_rate=0.5, num_layers=num_layers)


def test_a_model_without_blocks():
    with pytest.raises(ValueError, match='num_layers=2 but the model has 0 blocks'):
        build(nn.Sequential(nn.Linear(2, 2)), **RECIPE)


def test_frozen_parameters_are_left_out(model):
    model.backbone.requires_grad_(False)
    model.backbone.patch_embed.zero_mlp.requires_grad_(True)
    wrapper = build(model, **RECIPE)
    assert settings_of(wrapper, model).keys() == {
        'backbone.patch_embed.zero_mlp.weight', 'backbone.patch_embed.zero_mlp.bias', 'neck.0.weight', 'neck.0.bias',
        'neck.1.weight', 'neck.1.bias', 'decode_head.weight', 'decode_head.bias'}
    assert [group['lr'] for group in wrapper.optimizer.param_groups] == [0.8]  # no group is empty


def test_nothing_to_train(model):
    model.requires_grad_(False)
    count = len(list(model.parameters()))
    with pytest.raises(ValueError, match=f'all {count} parameters are frozen: nothing is left to train'):
        build(model, **RECIPE)


def test_names_are_those_inside_a_data_parallel_wrapper(model):
    wrapped = nn.Module()
    wrapped.module = model
    assert settings_of(build(wrapped, **RECIPE), model) == settings_of(build(model, **RECIPE), model)


@pytest.mark.parametrize(('change', 'message'), [
    (dict(decay_rate=0.9, decay_type='layer_wise'), r"unknown paramwise_cfg options \['decay_rate', 'decay_type'\]: .*"
                                                    "'layer_decay_rate', 'num_layers', 'flat_decay_mult'"),
    (dict(custom_keys=dict(backbone=dict(lr_mult=0.1))), r"unknown paramwise_cfg options \['custom_keys'\]"),
    (dict(norm_decay_mult=0.0), r"unknown paramwise_cfg options \['norm_decay_mult'\]"),
    (dict(no_weight_decay_keys=('pos_embed', 'rel_pos')), r"no_weight_decay_keys \['rel_pos'\]: remove them"),
    (dict(no_weight_decay_keys=('pos',)), r"no_weight_decay_keys \['pos'\]"),  # a part of a part
    (dict(lr=None), 'set lr and weight_decay'),
    (dict(weight_decay=None), 'set lr and weight_decay'),
])
def test_wrong_options(model, change, message):
    with pytest.raises(ValueError, match=message):
        build(model, **{**RECIPE, **change})


@pytest.mark.parametrize(('options', 'missing'), [
    ({}, r"\['layer_decay_rate', 'num_layers'\]"), (dict(num_layers=2), r"\['layer_decay_rate'\]"),
    (dict(layer_decay_rate=0.9), r"\['num_layers'\]")])
def test_missing_options(model, options, missing):
    with pytest.raises(ValueError, match=f'paramwise_cfg has no {missing}: set layer_decay_rate .* and num_layers'):
        build(model, **options)
    if not options:
        with pytest.raises(ValueError, match=missing):
            APTLayerDecayOptimWrapperConstructor(dict(optimizer=dict(type='AdamW', lr=LR, weight_decay=WEIGHT_DECAY)))


def test_each_group_is_logged(model, caplog):
    logger = MMLogger.get_instance('test_each_group_is_logged')
    logger.addHandler(caplog.handler)
    build(model, **RECIPE, **SEGMENTATION)
    lines = [line for record in caplog.records if (line := record.getMessage()).startswith('layer')]
    assert len(lines) == 8  # four layers, with and without decay
    assert lines[0].startswith('layer  3: lr 8.000e-01 (x1.0000), weight decay 0.1, 4 tensors, ')
    # conv_down: 8 * 8 * 4, zero_mlp: 8 * 8, neck: 8 * 4, head: 4 * 3.
    assert lines[0].endswith(f', {256 + 64 + 32 + 12} values, such as backbone.patch_embed.conv_down.weight')
    assert lines[-1].startswith('layer  0: lr 1.000e-01 (x0.1250), weight decay 0, 3 tensors, ')
