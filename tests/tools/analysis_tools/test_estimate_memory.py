"""The count of what autograd saves, and the estimate as a command."""
import json
import re
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from torch import nn

from apt_dense.mm.errors import LaunchError
from tests.locations import CONFIGS, load_tool

tool = load_tool('analysis_tools/estimate_memory.py')


def test_saved_bytes_of_known_layers():
    """A Linear saves its input, and so does the next, whose input is what the ReLU saves too; weights do not count."""
    model = nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 8))
    with tool.SavedBytes(model) as counter:
        model(torch.randn(10, 6))
    assert counter.total == 4 * 10 * (6 + 50)
    with tool.SavedBytes(model) as counter, torch.autocast('cpu', dtype=torch.bfloat16):
        model(torch.randn(10, 6))
    assert counter.total == 2 * 10 * (6 + 50)  # not the second weight's copy
    with tool.SavedBytes(model) as counter, torch.no_grad():
        model(torch.randn(10, 6))
    assert counter.total == 0


def estimate(task, tmp_path, capsys, monkeypatch):
    """What the command prints for the demo's APT model on noise, and its figures in MB: weights, blocks, rest.

    Without a size, it is that of the config: 256 px.
    """
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / 'noise.png')
    config = str(CONFIGS / f'apt_eva02_ti_demo_{task}.py')
    monkeypatch.setattr(tool, 'GB', 1e6)
    arguments = [config, str(tmp_path / 'noise.png'), '--batch-size', '1', '3']
    monkeypatch.setattr(sys, 'argv', ['', *arguments])
    tool.main()
    printed = capsys.readouterr().out
    figures = re.search(r'optimiser: ([\d.]+) GB; an image: ([\d.]+) GB in the blocks, ([\d.]+) GB', printed).groups()
    return printed, *map(float, figures)


@pytest.mark.parametrize(('task', 'millions'), [('det', 9), ('seg', 7)])
def test_the_command(task, millions, tmp_path, capsys, monkeypatch):
    printed, weights, blocks, rest = estimate(task, tmp_path, capsys, monkeypatch)
    assert f'at 256 px: 256 of 256 tokens, {millions} million parameters, {millions} trained' in printed
    assert 18 * (millions - 0.5) < weights < 18 * (millions + 0.5) and rest > 5
    hidden, dims = int(192 * 8 / 3), 192
    per_token = blocks * 1e6 / 12 / 256
    assert 2 * (9 * dims + 5 * hidden) < per_token < 4 * (14 * dims + 7 * hidden)  # its tensors in 2 and in 4 bytes
    one, three = (float(value) for value in re.findall(r'images: ([\d.]+) GB', printed))
    assert abs(one - weights - blocks - rest) < 0.2 and abs(three - weights - 3 * (blocks + rest)) < 0.4


@pytest.mark.parametrize(('config', 'px'), [
    ('dinov3_ti_demo_seg', 256), ('eva02_l_ade20k_640', 640), ('dinov3_l_coco_1536', 1536), ('mae_l_ade20k_512', 512)])
def test_the_size_is_that_of_the_config(config, px):
    cfg = Config.fromfile(CONFIGS / f'{config}.py')
    assert tool.side_of(cfg, None) == px and tool.side_of(cfg, 2 * px) == 2 * px


def test_sizes_that_are_none():
    cfg = Config.fromfile(CONFIGS / 'apt_eva02_ti_demo_seg.py')
    for size in (0, -64, 100):
        with pytest.raises(LaunchError, match=f'--size {size} must be a multiple of 128 px, such as 128$'):
            tool.side_of(cfg, size)
    cfg.model.backbone.img_size = (256, 512)
    with pytest.raises(LaunchError, match=r'img_size=\(256, 512\) of the config is no square: give --size'):
        tool.side_of(cfg, None)
    del cfg.model.backbone['img_size']
    assert tool.side_of(cfg, None) == 1536  # APTEVA02's own


def test_figures_are_kept_by_config(tmp_path, monkeypatch):
    """At the config's own size; an entry that is there is replaced, others stay."""
    Image.fromarray(np.full((90, 120, 3), 90, np.uint8)).save(tmp_path / 'flat.png')
    path = tmp_path / 'new/memory.json'
    memory = tool.Memory(256, 1, 4, 10, 5, 120, 1000.4, 100.0, 10.0)
    for name in ('one', 'apt_eva02_ti_demo_seg'):
        tool.save(memory, f'configs/{name}.py', path)
    monkeypatch.setattr(sys, 'argv', ['', str(CONFIGS / 'apt_eva02_ti_demo_seg.py'), str(tmp_path / 'flat.png'),
                                      '--save', str(path)])
    tool.main()
    entries = json.loads(path.read_text())
    assert entries['one'] == dict(memory._asdict(), blocks=1000)
    counted = tool.Memory(**entries['apt_eva02_ti_demo_seg'])
    assert counted.size_px == Config.fromfile(CONFIGS / 'apt_eva02_ti_demo_seg.py').model.backbone.img_size
    assert counted.tokens < counted.cells == (counted.size_px // 16)**2
    assert counted.of(2, True) == counted.weights + 2 * (counted.blocks_with_cp + counted.rest)


def test_a_segmentors_two_images_count_as_one():
    """The bytes of an image are those that a third image adds: autocast's copies of the weights are no part of them."""
    cfg = Config.fromfile(CONFIGS / 'apt_eva02_ti_demo_seg.py')
    init_default_scope(cfg.default_scope)
    image, sample = torch.randn(1, 3, 256, 256), tool.segmentation_sample(256)
    of_two, of_three = (
        tool.saved_bytes(revert_sync_batchnorm(MODELS.build(cfg.model)).train(), image.repeat(images, 1, 1, 1),
                         [sample] * images) for images in (2, 3))
    for two, three in zip(of_two, of_three, strict=True):
        assert 3 * three - 2 * two == pytest.approx(two, rel=0.03)
