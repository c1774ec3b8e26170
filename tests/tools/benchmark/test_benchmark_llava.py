"""tools/benchmark/benchmark_llava.py, on a small model."""
import json

import pytest
import torch

from tests.hf.llava_toys import llava
from tests.hf.models import transformers
from tests.locations import load_tool

transformers()
benchmark = load_tool('benchmark/benchmark_llava.py')


def test_numbers_of_tokens():
    assert [benchmark.tokens_at(share, 576) for share in (1.0, 0.7, 0.25)] == [576, 402, 144]


def test_the_table_counts_both_models(capsys):
    benchmark.main(['--count', '--text', '32'])
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + 2 * len(benchmark.SHARES) and rows[2].startswith('| 7B | 100% | 576 | 0.183 | ')
    assert rows[2].endswith('| 1.00 |') and float(rows[-1].split('|')[-2]) > 1.5


@torch.no_grad()
def test_both_models_are_measured_in_turns(tmp_path, monkeypatch, capsys):
    config = llava().config
    config.text_config.vocab_size = 80
    small = dict(image_size=336, patch_size=14)
    config.vision_config.update(small)
    monkeypatch.setattr(benchmark, 'published_config', lambda name, **sizes: config)
    benchmark.main(['--repeats', '2', '--json', str(tmp_path / 'row.json')])
    row = json.loads((tmp_path / 'row.json').read_text())['row']
    assert {name: len(values) for name, values in row['seconds'].items()} == dict(dense=2, apt=2, score=2)
    assert row['tokens'] == dict(dense=576, apt=402) and row['of_ideal'] == pytest.approx(row['speedup'] / row['ideal'])
    assert 'kept 0.698' in capsys.readouterr().out
    dense, apt = benchmark.build_pair(config)
    assert dense.model.language_model is apt.model.language_model
    assert torch.equal(dense.model.vision_tower.pre_layrnorm.weight, apt.model.vision_tower.pre_layrnorm.weight)
    assert not any(parameter.is_meta for parameter in apt.parameters())
