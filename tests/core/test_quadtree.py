import pytest
import torch

from apt_dense import select_scales
from apt_dense.core.quadtree import check_thresholds, count_tokens, fit_budgets, share_budget
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


@pytest.mark.parametrize('thresholds', ['ab', 3, None, (1, 'a')])
def test_thresholds_that_are_no_numbers(thresholds):
    with pytest.raises(ValueError, match='are no numbers: give 2, fine to coarse'):
        check_thresholds(thresholds, 3)


def test_shapes_that_do_not_belong_together():
    scores = random_scores(8, 12, 3)
    with pytest.raises(ValueError, match=r'scores\[2\] has shape \(2, 2, 4\), wanted \(2, 2, 3\): half of the grid'):
        select_scales([*scores[:2], torch.zeros(2, 2, 4)], (2, 2))
    with pytest.raises(ValueError, match=r'scores\[1\] has shape \(1, 4, 6\), wanted \(2, 4, 6\)'):
        select_scales([scores[0], scores[1][:1], scores[2]], (2, 2))


# --- A budget of tokens ---


def tokens_of(scales: torch.Tensor) -> list[int]:
    return [sum(1 for token in oracle.token_list(image[None], 0, 4)) for image in scales]


BUDGET_THRESHOLDS = (0.5, 0.375, 0.125)


def test_budgets_hold_and_other_images_are_left_alone():
    scores = random_scores(16, 24, 4, batch=3)
    plain = select_scales(scores, BUDGET_THRESHOLDS)
    counts = tokens_of(plain)
    budgets = [counts[0] // 2, counts[1], 6]  # 6: two by three patches of the largest size, the least possible
    scales = fit_budgets(scores, BUDGET_THRESHOLDS, budgets)
    fitted = tokens_of(scales)
    assert all(count <= budget for count, budget in zip(fitted, budgets, strict=True))
    assert torch.equal(scales[1], plain[1]) and fitted[2] == 6
    assert fitted == count_tokens(scales).tolist()


def test_thresholds_are_raised_by_the_least_amount():
    """A raise that is smaller by a step of the scores, which are eighths, breaks the budget."""
    scores = [score.mul(8).round() / 8 for score in random_scores(16, 24, 4, batch=1)]
    budget = tokens_of(select_scales(scores, BUDGET_THRESHOLDS))[0] // 2
    scales = fit_budgets(scores, BUDGET_THRESHOLDS, [budget])
    raises = [step / 8 + 1e-6 for step in range(-1, 10)]
    maps = [select_scales(scores, [threshold + raised for threshold in BUDGET_THRESHOLDS]) for raised in raises]
    first = next(index for index, one in enumerate(maps) if tokens_of(one)[0] <= budget)
    assert torch.equal(scales, maps[first]) and tokens_of(maps[first - 1])[0] > budget


def test_budgets_do_not_depend_on_batch_neighbours():
    scores = random_scores(16, 16, 4, batch=2)
    both = fit_budgets(scores, BUDGET_THRESHOLDS, [20, 40])
    for index, budget in enumerate((20, 40)):
        alone = fit_budgets([score[index:index + 1] for score in scores], BUDGET_THRESHOLDS, [budget])
        assert torch.equal(alone[0], both[index])


def test_a_budget_below_the_least_possible():
    scores = random_scores(16, 24, 4)
    with pytest.raises(ValueError, match='budget of 5 tokens is less than the 6 patches .* raise max_tokens'):
        fit_budgets(scores, BUDGET_THRESHOLDS, [5, 100])


@pytest.mark.parametrize(('counts', 'budget', 'limits'), [
    ([10, 20, 30], 60, [10, 20, 30]),
    ([10, 20, 90], 60, [30, 30, 30]),
    ([50, 90, 10], 70, [30, 30, 30]),
    ([5, 5], 7, [3, 3]),
])
def test_a_batchs_budget_is_one_limit(counts, budget, limits):
    assert share_budget(counts, budget) == limits
    assert sum(min(pair) for pair in zip(counts, limits, strict=True)) <= budget
