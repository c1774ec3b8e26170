"""Predictions beside those with nothing merged."""
import numpy as np
import pytest
from PIL import Image

from apt_dense.demo.predictions import SideBySide
from apt_dense.mm.errors import DataError
from tests.mm.inference.conftest import checkpoints, dense_det, picture  # noqa: F401


def asked_of(predictor, monkeypatch):
    """The thresholds that the model predicts with, and its results."""
    seen, predict = [], predictor.model.predict

    def note(source):
        results = predict(source)
        seen.append((predictor.model.thresholds, results[0]))
        return results
    monkeypatch.setattr(predictor.model, 'predict', note)
    return seen


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_side_by_side(task, checkpoints, monkeypatch):  # noqa: F811
    predictor = SideBySide(str(checkpoints[task]))
    seen = asked_of(predictor, monkeypatch)
    image = Image.fromarray(picture(96, 128))
    drawn = predictor.draw(image, (4.0, 2.0, 1.0))
    assert drawn.width > 2 * 128 and [thresholds for thresholds, _ in seen] == [(4.0, 2.0), (-1.0, -1.0)]
    assert seen[0][1].tokens.kept < 1 == seen[1][1].tokens.kept
    predictor.draw(image, (4.0, 2.0, 1.0), kept=0.3)
    assert 0.1 < seen[2][1].tokens.kept <= 0.3  # found for the model's own input
    with pytest.raises(DataError, match='got 1 thresholds for a model of 3 patch sizes'):
        predictor.draw(image, (4.0,))


def test_a_dense_model(dense_det, monkeypatch):  # noqa: F811
    predictor = SideBySide(*map(str, dense_det))
    seen = asked_of(predictor, monkeypatch)
    predictor.draw(Image.fromarray(np.full((96, 128, 3), 90, np.uint8)), (1e-3, 1e-3, 1e-3))
    assert seen[0][1].tokens.kept < 1 == seen[1][1].tokens.kept
