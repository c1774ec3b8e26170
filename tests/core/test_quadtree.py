import pytest
import torch

from apt_dense import select_scales
from tests import oracle

GRIDS = [(8, 12), (16, 8), (13, 20), (1, 3), (5, 2)]


def random_scores(height: int, width: int, num_scales: int, batch: int = 2) -> list[torch.Tensor]:
    """Scores of one decimal, so that many equal a threshold of one decimal."""
    return [torch.rand(batch, -(-height // 2**scale), -(-width // 2**scale)).mul(10).round() / 10
            for scale in range(num_scales)]


@pytest.mark.parametrize(('height', 'width'), GRIDS)
@pytest.mark.parametrize('thresholds', [(), (0.5,), (0.5, 0.5), (0.3, 0.6, 0.5), (0.5, -1.0, 0.5), (-1.0, 0.4, -1.0)])
def test_equals_oracle(height, width, thresholds):
    thresholds = tuple(torch.tensor(thresholds).tolist())  # as the scores, in float32
    scores = random_scores(height, width, len(thresholds) + 1)
    scales = select_scales(scores, thresholds)
    assert scales.dtype == torch.int64
    assert torch.equal(scales, oracle.select_scales(scores, thresholds))


def test_worked_numbers():
    fine = torch.zeros(2, 4, 8)
    middle = torch.tensor([[[1, 2, 3, 3], [3, 1.5, 3, 3]], [[3, 3, 0, 0], [3, 3, 0, 0]]])
    coarse = torch.tensor([[[9, 0]], [[0, 0.5]]])
    assert select_scales([fine, middle, coarse], (2, 0.5)).tolist() == [
        [[1, 1, 0, 0, 2, 2, 2, 2], [1, 1, 0, 0, 2, 2, 2, 2], [0, 0, 1, 1, 2, 2, 2, 2], [0, 0, 1, 1, 2, 2, 2, 2]],
        # The coarsest patch wins whatever its parts score; a score of 0.5 is at the threshold and splits.
        [[2, 2, 2, 2, 1, 1, 1, 1], [2, 2, 2, 2, 1, 1, 1, 1], [2, 2, 2, 2, 1, 1, 1, 1], [2, 2, 2, 2, 1, 1, 1, 1]],
    ]


def test_a_score_at_the_threshold_splits():
    scores = [torch.zeros(2, 4, 6), torch.full((2, 2, 3), 2.0)]
    assert (select_scales(scores, (2.0,)) == 0).all()
    assert (select_scales(scores, (2.0001,)) == 1).all()


def test_thresholds_of_minus_one_reduce_nothing():
    scores = [score * 0 for score in random_scores(8, 12, 4)]
    assert (select_scales(scores, (-1, -1, -1)) == 0).all()


def test_infinite_thresholds_and_the_coarsest():
    scores = random_scores(8, 12, 3)
    assert (select_scales(scores, (float('inf'),) * 2) == 2).all()
    assert (select_scales(scores, (float('inf'), -1)) == 1).all()


def test_a_nan_score_splits():
    scores = [torch.zeros(2, 2, 4), torch.full((2, 1, 2), float('nan'))]
    assert (select_scales(scores, (5,)) == 0).all()


def test_wrong_number_of_thresholds():
    scores = random_scores(8, 12, 3)
    with pytest.raises(ValueError, match=r'got 1 thresholds \(2,\) for 3 scales: give 2, fine to coarse'):
        select_scales(scores, (2,))
    with pytest.raises(ValueError, match='got 3 thresholds .* for 3 scales: give 2'):
        select_scales(scores, (2, 2, 2))


def test_nan_threshold():
    with pytest.raises(ValueError, match=r'thresholds \(2, nan\) contain a NaN'):
        select_scales(random_scores(8, 12, 3), (2, float('nan')))


def test_shapes_that_do_not_belong_together():
    scores = random_scores(8, 12, 3)
    with pytest.raises(ValueError, match=r'scores\[2\] has shape \(2, 2, 4\), wanted \(2, 2, 3\): half of the grid'):
        select_scales([*scores[:2], torch.zeros(2, 2, 4)], (2, 2))
    with pytest.raises(ValueError, match=r'scores\[1\] has shape \(1, 4, 6\), wanted \(2, 4, 6\)'):
        select_scales([scores[0], scores[1][:1], scores[2]], (2, 2))
