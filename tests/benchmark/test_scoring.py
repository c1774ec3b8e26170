"""The ways to score that the benchmark compares compute the same."""
import json

import torch

from apt_dense.benchmark import scoring
from apt_dense.benchmark.scoring import METHODS, build_image, main
from apt_dense.core.layout import TokenLayout


def test_methods_agree():
    image = build_image(256)
    own, *others = METHODS['apt_dense'](image), METHODS['one-hot'](image), METHODS['histc'](image)
    assert [scores.shape[1] for scores in own] == [8, 4, 2] and own[0].std() > 1
    for other in others:
        for wanted, got in zip(own, other, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scoring, 'peak_of', lambda prepare, device: dict(total=9.0, extra=1.0 * isinstance(
        prepare()(), TokenLayout)))
    assert main(['--img-size', '512', '--one-hot-size', '128', '--repeats', '1', '--json',
                 str(tmp_path / 'scoring.json')]) == 0
    rows = json.loads((tmp_path / 'scoring.json').read_text())['rows']
    assert [(row['method'], row['img_size'], row['memory']['extra']) for row in rows] == [
        ('one-hot', 128, 0), ('histc', 512, 0), ('apt_dense', 512, 0), ('apt_dense, whole', 512, 1),
        ('upsampling_error_max, whole', 512, 1)]
    lines = capsys.readouterr().out.splitlines()
    assert 'wall time, 1 round' in lines[0] and lines[-3].split()[-2] == '1.0'


def test_the_whole_way_keeps_the_wanted_tokens():
    layout = METHODS['apt_dense, whole'](build_image(512, 'apt_dense, whole'))
    assert abs(layout.num_tokens - 0.7 * 32**2) <= 1.5
