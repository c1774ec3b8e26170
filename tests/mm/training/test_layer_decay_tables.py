"""Every parameter's rate and weight decay for EVA-02-B and L, against tables written from the official recipes."""
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import apt_dense.mm.det
import apt_dense.mm.seg  # noqa: F401
from tests.locations import CONFIGS

TOP = 'top'  # the layer above the last block: the base rate

# Pattern of the names -> (layer, has weight decay in segmentation).  In detection every parameter has it.
BACKBONE = {
    r'backbone\.(pos_embed|cls_token)': (0, False),
    r'backbone\.patch_embed\.proj\.weight': (0, True),
    r'backbone\.patch_embed\.proj\.bias': (0, False),
    r'backbone\.patch_embed\.(conv_down|zero_mlp)\.weight': (TOP, True),
    r'backbone\.patch_embed\.(conv_down|zero_mlp)\.bias': (TOP, False),
    r'backbone\.blocks\.(\d+)\.norm[12]\.(weight|bias)': ('block', False),
    r'backbone\.blocks\.(\d+)\.attn\.([qkv]_)?proj\.weight': ('block', True),
    r'backbone\.blocks\.(\d+)\.attn\.([qv]_bias|proj\.bias)': ('block', False),
    r'backbone\.blocks\.(\d+)\.mlp\.w[123]\.weight': ('block', True),
    r'backbone\.blocks\.(\d+)\.mlp\.(w[123]\.bias|ffn_ln\.(weight|bias))': ('block', False),
}
DETECTOR = {r'(neck|rpn_head|roi_head\.(bbox_head\.[012]|mask_head))\..*': (TOP, None)}
SEGMENTOR = {
    r'neck\.upsample_4x\.[03]\.weight': (TOP, True),
    r'neck\.upsample_4x\.([03]\.bias|1\.(weight|bias))': (TOP, False),
    r'neck\.upsample_2x\.0\.weight': (TOP, True),
    r'neck\.upsample_2x\.0\.bias': (TOP, False),
    r'(decode|auxiliary)_head\..*(conv|conv_seg)\.weight': (TOP, True),
    r'(decode|auxiliary)_head\..*(bn\.(weight|bias)|conv_seg\.bias)': (TOP, False),
}
MODELS_OF_CONFIGS = {
    **{f'apt_eva02_{size}_coco_full': dict(depth=depth, rate=rate, lr=5e-5, weight_decay=0.1)
       for size, depth, rate in (('b', 12, 0.7), ('l', 24, 0.8))},
    'apt_eva02_b_ade20k_512_full': dict(depth=12, rate=0.85, lr=6e-5, weight_decay=0.05),
    'apt_eva02_l_ade20k_512_full': dict(depth=24, rate=0.9, lr=4e-5, weight_decay=0.05),
    'apt_eva02_l_ade20k_640_full': dict(depth=24, rate=0.9, lr=4e-5, weight_decay=0.05),
}
# The short fine-tuning of the entire model: the same at a tenth of the rate.
MODELS_OF_CONFIGS |= {name.replace('_full', '_entire'): dict(settings, lr=settings['lr'] / 10)
                      for name, settings in MODELS_OF_CONFIGS.items()}


def load(name: str) -> tuple[Config, nn.Module]:
    """The config, and its model on the meta device."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        return cfg, MODELS.build(cfg.model)


def layer_of(layer: int | str, match: re.Match, depth: int) -> int:
    return {TOP: depth + 1, 'block': int(match[1]) + 1 if layer == 'block' else None}.get(layer, layer)


def check(model: nn.Module, optim_wrapper: dict, table: dict, depth: int, rate: float, lr: float,
          weight_decay: float) -> None:
    """Each parameter is in one group, and fits one row of the table; each row of the table is used."""
    found = {}
    for group in build_optim_wrapper(model, optim_wrapper).optimizer.param_groups:
        for parameter in group['params']:
            assert id(parameter) not in found
            found[id(parameter)] = group['lr'], group['weight_decay']
    used, wrong = set(), {}
    for name, parameter in model.named_parameters():
        rows = [(pattern, match) for pattern in table if (match := re.fullmatch(pattern, name))]
        assert len(rows) == 1, (name, rows)
        (pattern, match), = rows
        layer, decays = table[pattern]
        wanted = lr * rate**(depth + 1 - layer_of(layer, match, depth)), weight_decay if decays is not False else 0.0
        used.add(pattern)
        if found.pop(id(parameter)) != pytest.approx(wanted, rel=1e-9, abs=0):
            wrong[name] = wanted
    assert not wrong and not found
    assert used == table.keys()


@pytest.mark.parametrize('name', MODELS_OF_CONFIGS)
def test_config(name):
    cfg, model = load(name)
    if 'coco' in name:
        table = {pattern: (layer, None) for pattern, (layer, _) in BACKBONE.items()} | DETECTOR
    else:
        table = BACKBONE | SEGMENTOR
    check(model, cfg.optim_wrapper, table, **MODELS_OF_CONFIGS[name])


def test_the_official_names_of_the_segmentation_neck_are_unknown():
    """In the official code fpn1 and fpn2 are the backbone's; a model that keeps them there must say their layer."""
    cfg, model = load('apt_eva02_b_ade20k_512_full')
    model.backbone.fpn1 = model.neck.upsample_4x
    with pytest.raises(ValueError, match=r"'backbone\.fpn1\.0\.weight' has no layer"):
        build_optim_wrapper(model, cfg.optim_wrapper)
