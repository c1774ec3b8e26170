"""The benchmark runs and reports; its times are not judged."""
import numpy as np
import torch
from PIL import Image

from apt_dense import benchmark


def test_report(tmp_path, capsys, monkeypatch):
    image = np.full((60, 128, 3), 60, np.uint8)
    image[:, 64:] = np.random.default_rng(0).integers(0, 256, (60, 64, 3))
    Image.fromarray(image).save(tmp_path / 'photo.png')
    monkeypatch.setitem(benchmark.PRESETS, 'tiny', dict(embed_dims=32, depth=2, num_heads=2, window_size=8))
    monkeypatch.setitem(benchmark.PRESETS['tiny'], 'global_block_indexes', (1,))
    monkeypatch.setattr(benchmark, 'peak_memory_mib', lambda args, thresholds: 50.0 if thresholds else 100.0)
    benchmark.main([str(tmp_path / 'photo.png'), '--model', 'tiny', '--img-size', '128', '--repeats', '1'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('EVA-02-tiny, 128 px, batch 1, float32, CPU')
    # The noise: 16 cells; the constant part, with 4 rows of padding, and the padding below: one patch of 64 px each.
    assert lines[1] == 'kept tokens: 19 of 64 (0.297)'
    assert lines[2].startswith(' dense: median') and lines[3].startswith('   APT: median')
    assert lines[4].endswith('0.50 of the memory')


def test_input_is_normalised_and_padded_like_a_detectors(tmp_path):
    Image.fromarray(np.full((30, 60, 3), 124, np.uint8)).save(tmp_path / 'photo.png')
    x = benchmark.load_input(tmp_path / 'photo.png', 64)
    assert x.shape == (1, 3, 64, 64)
    assert x[0, :, 32:].abs().max() == 0
    torch.testing.assert_close(x[0, 0, 5, 5], torch.tensor((124 - 123.675) / 58.395))
