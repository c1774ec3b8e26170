"""An official segmentation file through the converter, against a model put together by hand."""
import runpy
import sys

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from mmseg.models.decode_heads import FCNHead, UPerHead
from mmseg.models.necks import Feature2Pyramid

from tests.locations import TOOLS
from tests.mm.models.test_seg import tiny
from tests.official import official_state
from tests.oracle import oracle_backbone

TOOL = TOOLS / 'model_converters/eva02_to_mm.py'
BN = dict(type='BN')


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


def part(state: dict, prefix: str) -> dict:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


@torch.no_grad()
def by_hand(official: dict, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the decode head and of the auxiliary head, from the official names, without this project's model."""
    maps = oracle_backbone(part(official, 'backbone.'), x, depth=4, num_heads=2, window_size=0, global_block_indexes=(),
                           out_indices=(0, 1, 2, 3), with_cls_token=True)
    neck = Feature2Pyramid(32, norm_cfg=BN).eval()
    neck.upsample_4x.load_state_dict(part(official, 'backbone.fpn1.'))
    neck.upsample_2x.load_state_dict(part(official, 'backbone.fpn2.'))
    head = UPerHead(pool_scales=(1, 2, 3, 6), in_channels=[32] * 4, in_index=[0, 1, 2, 3], channels=16, num_classes=6,
                    norm_cfg=BN, align_corners=False).eval()
    auxiliary = FCNHead(in_channels=32, in_index=2, channels=16, num_convs=1, concat_input=False, num_classes=6,
                        norm_cfg=BN, align_corners=False).eval()
    head.load_state_dict(part(official, 'decode_head.'))
    auxiliary.load_state_dict(part(official, 'auxiliary_head.'))
    features = neck(maps)
    return head(features), auxiliary(features)


@torch.no_grad()
@pytest.mark.parametrize('name', ['eva02_ti_demo_seg', 'apt_eva02_ti_demo_seg'])
def test_every_key_lands_and_the_outputs_are_equal(name, tmp_path, monkeypatch):
    torch.manual_seed(0)
    official = official_state(tiny('eva02_ti_demo_seg'))
    torch.save({'state_dict': official, 'meta': {'epoch': 1}}, tmp_path / 'official.pth')
    cfg = tiny(name)
    if name.startswith('apt'):
        cfg.model.backbone.thresholds = (-1.0, -1.0)  # nothing is merged: the official model
    cfg.dump(str(tmp_path / 'config.py'))
    monkeypatch.setattr(sys, 'argv', [str(TOOL), str(tmp_path / 'official.pth'), str(tmp_path / 'converted.pth'),
                                      '--config', str(tmp_path / 'config.py')])
    runpy.run_path(str(TOOL), run_name='__main__')

    content = torch.load(tmp_path / 'converted.pth')
    # What mmsegmentation draws predictions with; without it, with the classes of Cityscapes.
    assert content['meta']['dataset_meta'] == dict(cfg.metainfo)
    converted = content['state_dict']
    assert len(converted) == len(official) - 2  # the two tables of RoPE are computed
    cfg.model.neck.norm_cfg = cfg.model.decode_head.norm_cfg = cfg.model.auxiliary_head.norm_cfg = BN
    model = MODELS.build(cfg.model).eval()
    added = {key for key in model.state_dict() if 'conv_down' in key or 'zero_mlp' in key}
    assert model.state_dict().keys() - added == converted.keys()
    load_checkpoint(model, str(tmp_path / 'converted.pth'), strict=not added)

    x = torch.randn(2, 3, 128, 192)  # not the table's size
    features = model.extract_feat(x)
    for ours, theirs in zip((model.decode_head(features), model.auxiliary_head(features)), by_hand(official, x),
                            strict=True):
        assert theirs.std() > 0.1
        torch.testing.assert_close(ours, theirs, atol=2e-5 * theirs.abs().max().item(), rtol=0)
