"""Freezing, layer decay, sharding and logging for families other than EVA-02: none of them asks which one it is."""
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch import nn

import apt_dense.mm.det  # noqa: F401
from apt_dense.core.embed import ADDED_PARAMETERS
from apt_dense.mm.training.fsdp import wrap_transformer_blocks
from tests.mm.conftest import ADDED, point_to
from tests.mm.training.test_fsdp import Unit
from tests.mm.training.test_training import logged_scalars

FAMILIES = {'APTDINOv3': {}, 'APTViT': dict(pretrain_img_size=64, layer_scale=1.0),
            'APTSAM3': dict(pretrain_img_size=64)}


@pytest.fixture
def family_config(tiny_config):
    """family_config(name) -> the tiny detector on a backbone of that family, with windows and two global blocks."""

    def load(name: str):
        cfg = tiny_config()
        old = cfg.model.backbone
        kept = {key: old[key] for key in ('img_size', 'embed_dims', 'depth', 'num_heads', 'window_size', 'num_scales',
                                          'global_block_indexes', 'thresholds', 'img_mean', 'img_std')}
        cfg.model.backbone = dict(type=name, patch_size=16, **kept, **FAMILIES[name])
        return cfg

    return load


def decayed(model: nn.Module) -> dict[str, float]:
    """The rates of layer decay by parameter, from a rate of 1 and halves."""
    wrapper = build_optim_wrapper(model, dict(
        constructor='APTLayerDecayOptimWrapperConstructor', optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1),
        paramwise_cfg=dict(num_layers=4, layer_decay_rate=0.5)))
    rates = {id(parameter): group['lr'] for group in wrapper.optimizer.param_groups for parameter in group['params']}
    return {name: rates[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in rates}


@pytest.mark.parametrize('name', FAMILIES)
def test_layer_decay(name, family_config):
    model = MODELS.build(family_config(name).model)
    rates = decayed(model)
    assert rates.keys() == {key for key, _ in model.named_parameters()}
    first = {key for key, rate in rates.items() if rate == 0.5**5}
    wanted = {'APTDINOv3': {'cls_token', 'reg_token'}, 'APTViT': {'cls_token', 'pos_embed'},
              'APTSAM3': {'pos_embed', 'norm_pre.weight', 'norm_pre.bias'}}[name]
    bias = set() if name == 'APTSAM3' else {'patch_embed.proj.bias'}
    assert first == {f'backbone.{key}' for key in wanted | bias | {'patch_embed.proj.weight'}}
    for index in range(4):
        of_block = {rate for key, rate in rates.items() if key.startswith(f'backbone.blocks.{index}.')}
        assert of_block == {0.5**(4 - index)}
    assert all(rates[f'backbone.{key}'] == 1 for key in ADDED_PARAMETERS)
    assert {rate for key, rate in rates.items() if not key.startswith('backbone.')} == {1}
    if name != 'APTSAM3':
        assert rates['backbone.norm.weight'] == 1


@pytest.mark.parametrize('name', FAMILIES)
def test_frozen_but_for_what_apt_adds(name, family_config):
    model = MODELS.build(dict(family_config(name).model, trainable=ADDED)).train()
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f'backbone.{key}' for key in ADDED_PARAMETERS}
    assert model.backbone.patch_embed.training and not any(block.training for block in model.backbone.blocks)
    assert set(decayed(model)) == trained


@pytest.mark.parametrize('name', FAMILIES)
def test_the_blocks_are_the_units_of_sharding(name, family_config):
    model = MODELS.build(family_config(name).model)
    units = [key for key, module in model.named_modules() if wrap_transformer_blocks(module, False, 10**9)]
    assert units == [f'backbone.blocks.{index}' for index in range(4)]
    plain = decayed(model)
    model.backbone.blocks = nn.ModuleList(map(Unit, model.backbone.blocks))
    assert {key.replace('._fsdp_wrapped_module', ''): rate for key, rate in decayed(model).items()} == plain


@pytest.mark.slow
@pytest.mark.parametrize('name', FAMILIES)
def test_a_short_fine_tuning_is_logged(name, family_config, coco_root, tmp_path):
    """Two iterations of what APT adds, with layer decay, and a validation: kept tokens and their pictures are there."""
    cfg = point_to(family_config(name), coco_root, tmp_path / 'work', max_iters=2)
    cfg.model.trainable = ADDED
    cfg.optim_wrapper.update(constructor='APTLayerDecayOptimWrapperConstructor',
                             paramwise_cfg=dict(num_layers=4, layer_decay_rate=0.5))
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='LogPatchesHook', num_images=1)]
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()
    changed = {key for key, value in runner.model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and changed <= {f'backbone.{key}' for key in ADDED_PARAMETERS}
    scalars = logged_scalars(tmp_path / 'work')
    kept = [entry[key] for entry in scalars for key in ('kept_tokens', 'val_kept_tokens') if key in entry]
    assert len(kept) == 3 and all(0 < value < 1 for value in kept)
    shares = next([entry[f'val_tokens_{side}px'] for side in (16, 32, 64)] for entry in scalars
                  if 'val_tokens_16px' in entry)
    assert sum(shares) == pytest.approx(1)
    assert list((tmp_path / 'work').rglob('vis_image/patches_0_2.png'))
