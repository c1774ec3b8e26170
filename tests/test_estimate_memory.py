"""The count of what autograd saves, and the estimate as a command."""
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

SCRIPT = Path(__file__).parents[1] / 'tools/analysis_tools/estimate_memory.py'
spec = importlib.util.spec_from_file_location('estimate_memory', SCRIPT)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def test_saved_bytes_of_known_layers():
    """A Linear saves its input, and so does the next, whose input is what the ReLU saves too; weights do not count."""
    model = nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 8))
    with tool.SavedBytes(model) as counter:
        model(torch.randn(10, 6))
    assert counter.total == 4 * 10 * (6 + 50)
    with tool.SavedBytes(model) as counter, torch.no_grad():
        model(torch.randn(10, 6))
    assert counter.total == 0


def test_the_command(tmp_path, capsys, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / 'noise.png')
    config = str(SCRIPT.parents[2] / 'configs/apt_eva02_ti_demo_det.py')
    monkeypatch.setattr(tool, 'GB', 1e6)
    arguments = [config, str(tmp_path / 'noise.png'), '--size', '256', '--batch-size', '1', '3']
    monkeypatch.setattr(sys, 'argv', ['', *arguments])
    tool.main()
    printed = capsys.readouterr().out
    assert 'at 256 px: 256 of 256 tokens, 9 million parameters, 9 trained' in printed
    weights, blocks, rest = map(float, re.search(
        r'optimiser: ([\d.]+) GB; an image: ([\d.]+) GB in the blocks, ([\d.]+) GB', printed).groups())
    assert 18 * 8.5 < weights < 18 * 9.5 and rest > 5
    hidden, dims = int(192 * 8 / 3), 192
    per_token = blocks * 1e6 / 12 / 256
    assert 2 * (9 * dims + 5 * hidden) < per_token < 4 * (14 * dims + 7 * hidden)  # its tensors in 2 and in 4 bytes
    one, three = (float(value) for value in re.findall(r'images: ([\d.]+) GB', printed))
    assert abs(one - weights - blocks - rest) < 0.2 and abs(three - weights - 3 * (blocks + rest)) < 0.4
