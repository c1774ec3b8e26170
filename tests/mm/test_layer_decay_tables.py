"""Every parameter's rate and weight decay for EVA-02-B and L, against tables written from the official recipes."""
import re
from pathlib import Path

import mmseg.models  # noqa: F401  registers the segmentor
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn

import apt_dense.mm.det  # noqa: F401

CONFIGS = Path(__file__).parents[2] / 'configs'
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
DETECTION = {'b': dict(depth=12, rate=0.7), 'l': dict(depth=24, rate=0.8)}
SEGMENTATION = {'b': dict(depth=12, rate=0.85, lr=6e-5, dims=768, heads=12, out_indices=(3, 5, 7, 11)),
                'l': dict(depth=24, rate=0.9, lr=4e-5, dims=1024, heads=16, out_indices=(7, 11, 15, 23))}


def segmentor(dims: int, depth: int, heads: int, out_indices: tuple[int, ...], **_) -> nn.Module:
    """EVA-02's UperNet on mmsegmentation's classes, with APT, on the meta device."""
    norm = dict(type='SyncBN', requires_grad=True)
    backbone = dict(type='APTEVA02', img_size=512, embed_dims=dims, depth=depth, num_heads=heads, window_size=0,
                    global_block_indexes=tuple(range(depth)), out_indices=out_indices, with_cls_token=True,
                    pretrain_img_size=512, num_scales=3, thresholds=(4.0, 4.0))
    with torch.device('meta'):
        return MODELS.build(dict(
            type='mmseg.EncoderDecoder', _scope_='mmseg', backbone=backbone,
            neck=dict(type='Feature2Pyramid', embed_dim=dims, rescales=[4, 2, 1, 0.5], norm_cfg=norm),
            decode_head=dict(type='UPerHead', in_channels=[dims] * 4, in_index=[0, 1, 2, 3], channels=dims,
                             pool_scales=(1, 2, 3, 6), num_classes=150, norm_cfg=norm),
            auxiliary_head=dict(type='FCNHead', in_channels=dims, in_index=2, channels=256, num_convs=1,
                                concat_input=False, num_classes=150, norm_cfg=norm)))


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


@pytest.mark.parametrize('size', DETECTION)
def test_detection(size):
    cfg = Config.fromfile(CONFIGS / f'apt_eva02_{size}_coco_full.py')
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    backbone = {name: (layer, None) for name, (layer, _) in BACKBONE.items()}
    check(model, cfg.optim_wrapper, backbone | DETECTOR, **DETECTION[size], lr=5e-5, weight_decay=0.1)


@pytest.mark.parametrize('size', SEGMENTATION)
def test_segmentation(size):
    recipe = SEGMENTATION[size]
    optim_wrapper = dict(
        constructor='APTLayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(num_layers=recipe['depth'], layer_decay_rate=recipe['rate'], flat_decay_mult=0.0,
                           no_weight_decay_keys=('pos_embed', 'cls_token')),
        optimizer=dict(type='AdamW', lr=recipe['lr'], betas=(0.9, 0.999), weight_decay=0.05))
    check(segmentor(**recipe), optim_wrapper, BACKBONE | SEGMENTOR, recipe['depth'], recipe['rate'], recipe['lr'], 0.05)


def test_the_official_names_of_the_segmentation_neck_are_unknown():
    """In the official code fpn1 and fpn2 are the backbone's; a model that keeps them there must say their layer."""
    model = segmentor(**SEGMENTATION['b'])
    model.backbone.fpn1 = model.neck.upsample_4x
    with pytest.raises(ValueError, match=r"'backbone\.fpn1\.0\.weight' has no layer"):
        build_optim_wrapper(model, dict(
            constructor='APTLayerDecayOptimWrapperConstructor', optimizer=dict(type='AdamW', lr=1, weight_decay=1),
            paramwise_cfg=dict(num_layers=12, layer_decay_rate=0.85)))
