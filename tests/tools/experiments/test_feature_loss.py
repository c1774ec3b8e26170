"""tools/experiments/feature_loss.py: the losses, the fit, the correlation; and the whole on a tiny model."""
import json

import numpy as np
import pytest
import torch

from apt_dense.core.scorers import SCORERS
from tests.tools.experiments.conftest import modules

tool = modules.feature_loss


def test_losses_are_the_variance_inside_a_patch():
    maps = [torch.randn(1, 5, 8, 12), torch.randn(1, 3, 8, 12) * 10]
    losses = tool.feature_losses(maps, 3)
    for scale, loss in enumerate(losses, start=1):
        side = 2**scale
        assert loss.shape == (8 // side, 12 // side)
        for row, col in ((0, 0), (8 // side - 1, 12 // side - 1)):
            wanted = 0.0
            for features in maps:
                patch = features[0, :, row * side:(row + 1) * side, col * side:(col + 1) * side].flatten(1)
                every = features[0].flatten(1)
                distances = (patch - patch.mean(1, True)).square().sum(0).mean()
                wanted += distances / (every - every.mean(1, True)).square().sum(0).mean() / len(maps)
            assert loss[row, col].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert tool.feature_losses([torch.randn(1, 4, 1, 1).expand(1, 4, 8, 8) + torch.zeros(1, 4, 8, 8).index_fill_(
        3, torch.tensor([0]), 1.0)], 2)[0][:, 1:].max() == pytest.approx(0, abs=1e-9)


def test_rank_correlation():
    first, second = torch.randn(200, dtype=torch.float64), torch.randn(200, dtype=torch.float64)
    first[:50] = 0.0  # ties share their mean rank
    values = first.numpy(), (first + second).numpy()
    ranks = [[(one < value).sum() + ((one == value).sum() + 1) / 2 for value in one] for one in values]
    assert tool.spearman(first, first + second) == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert tool.spearman(first, -first.exp()) == pytest.approx(-1)


def test_a_linear_function_is_found():
    x = torch.randn(500, 7, dtype=torch.float64) * torch.arange(1, 8) + 5
    y = x @ torch.arange(7.).double() - 2
    weights, constant = tool.fit(x, y)
    assert (x @ weights + constant - y).std() < 0.005 * y.std()


def test_statistics_are_those_of_the_scorers():
    image = torch.randint(0, 256, (1, 3, 128, 256)).float()
    found = tool.statistics(image, 3)
    for name, index in (('resizing_error', 0), ('resizing_error_max', 1)):
        for scores, values in zip(SCORERS[name](image, 32, 3), found, strict=True):
            wanted = (scores[0].double() + tool.FLOOR).log()
            torch.testing.assert_close(values[..., index], wanted, rtol=1e-4, atol=1e-4)
    grey = image[0].permute(1, 2, 0).numpy() @ np.array([0.2989, 0.587, 0.114]) / 255
    assert found[0][0, 0, 4].exp() == pytest.approx(grey[:32, :32].var(), rel=1e-3)


def test_from_trained_models_to_the_table(tiny, data, monkeypatch, capsys):
    cells = modules.cells
    dense = cells.Cell('seg', 'tiny', None, cells.SCRATCH)
    assert tiny.main([dense]) == 0
    monkeypatch.setattr(tool, 'DATASETS', {'tiny': modules.grids.DATASETS['tiny']})
    monkeypatch.setattr(tool, 'NUM_FITTED', 4)
    arguments = ['--results', str(tiny.results), '--work-dir', str(tiny.work), '--data', str(data), '--configs',
                 str(tiny.configs), '--out', str(tiny.results.with_name('feature_loss.json'))]
    assert tool.main(arguments) == 0
    assert 'det_tiny_dense_scratch_s0: no weights' in capsys.readouterr().out
    table = json.loads(tiny.results.with_name('feature_loss.json').read_text())
    assert set(table) == {'seg_tiny'} and set(table['seg_tiny']) == {*SCORERS, 'fitted'}
    assert all(len(values) == 3 and all(-1 <= value <= 1 for value in values) for values in table['seg_tiny'].values())
    text = modules.report_tables.feature_loss_table(table)
    assert f'{table["seg_tiny"]["variance"][-1]:.2f} (' in text
