"""get_flops.py on small detectors and segmentors."""
import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from apt_dense.core.flops import dense_layout, multiply_adds
from apt_dense.mm.cli import launch
from tests.locations import load_tool

flops = load_tool('analysis_tools/get_flops.py')


@pytest.fixture
def mmseg_scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


def build(path: str, **backbone):
    cfg = Config.fromfile(path)
    cfg.model.backbone.update(backbone)
    return cfg, flops.build_model(cfg, None)


def test_detector_backbone_is_counted_without_running(written, monkeypatch):
    cfg, model = build(written('apt_eva02_ti_demo_det'))
    inputs = flops.open_inputs(cfg, None)
    with torch.no_grad():
        model.test_step(inputs.sample(0))
    layout = model.backbone.last_layout
    monkeypatch.setattr(type(model.backbone.blocks[0]), 'forward', None)  # would fail if a block ran
    counts = flops.count_backbone(model.backbone, inputs.inputs(0))
    assert counts == dict(backbone=multiply_adds(model.backbone, layout).total, kept=layout.num_tokens / 64,
                          dense_backbone=multiply_adds(model.backbone, dense_layout(layout)).total,
                          kept_content=int(layout.covers_content([(6, 8)]).sum()) / 48)
    assert 0 < counts['kept'] < counts['kept_content'] < 1


def test_every_window_of_a_segmentor_counts(written, mmseg_scope):
    cfg, model = build(written('apt_eva02_ti_demo_seg'), thresholds=(-1.0, -1.0))
    inputs = flops.open_inputs(cfg, None).inputs(1)
    assert len(inputs) == 2, '128 x 180 px in windows of 128, 85 apart'
    counts = flops.count_backbone(model.backbone, inputs)
    one = multiply_adds(model.backbone, model.backbone.chooser.layout(inputs[0].x)).total
    assert counts == dict(backbone=2 * one, dense_backbone=2 * one, kept=1, kept_content=1)


def test_neck_and_heads_of_a_segmentor(written, mmseg_scope):
    """The neck alone is counted by hand: 2 + 1 transposed convolutions; the heads are in the same sum."""
    cfg, model = build(written('eva02_ti_demo_seg'))
    inputs = flops.open_inputs(cfg, None)
    with torch.no_grad():
        rest = flops.count_rest(model, inputs.sample(0))
        model.neck.forward = lambda maps: [
            torch.zeros(1, 32, side, side) for side in (32, 16, 8, 4)]  # the same shapes for nothing
        without_neck = flops.count_rest(model, inputs.sample(0))
    assert rest - without_neck == 32 * 32 * 4 * (8 * 8 + 16 * 16 + 8 * 8)


def test_get_flops_of_a_folder(written, tmp_path, capsys):
    folder = tmp_path / 'photos'
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f'{index}.png'), np.random.default_rng(index).integers(0, 256, (90, 100 + index, 3)))
    (folder / 'notes.txt').write_text('no image')
    out = tmp_path / 'out/flops.json'
    flops.main([written('apt_eva02_ti_demo_det'), '--images', str(folder), '--num-images', '2', '--json', str(out)])
    content = json.loads(out.read_text())
    assert len(content['images']) == 2 and len(content['neck_and_heads']) == 1
    printed = capsys.readouterr().out
    assert '2 images' in printed and 'dense / APT, whole model' in printed
    line = next(line for line in printed.splitlines() if line.startswith('backbone, G'))
    mean = np.mean([image['backbone'] for image in content['images']])
    assert float(line.split()[3]) == pytest.approx(mean / 1e9, abs=6e-4)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(launch.LaunchError, match='empty holds no image'):
        flops.main([written('apt_eva02_ti_demo_det'), '--images', str(tmp_path / 'empty')])


def test_other_backbones_are_refused(written):
    cfg = Config.fromfile(written('apt_eva02_ti_demo_det'))
    cfg.model.backbone = dict(type='mmdet.ResNet', depth=18)
    with pytest.raises(launch.LaunchError, match='wanted one that packs tokens'):
        flops.open_inputs(cfg, None)


def test_missing_data_is_found_before_the_model_is_built(written, monkeypatch):
    monkeypatch.setattr(flops, 'build_model', None)
    with pytest.raises(launch.LaunchError, match='dataset files are missing'):
        flops.main([written('apt_eva02_ti_demo_det'), '--cfg-options', 'test_dataloader.dataset.data_root=/nowhere'])
