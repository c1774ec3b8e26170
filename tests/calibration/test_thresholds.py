"""Thresholds from score maps: counts as the backbone counts, and a search that finds what there is to find."""
import pytest
import torch

from apt_dense.calibration import thresholds as calibration
from apt_dense.calibration.thresholds import ScoreMaps, find_thresholds, quantile_family, ratio_family
from apt_dense.core.chooser import PatchChooser
from apt_dense.core.layout import TokenLayout
from apt_dense.core.quadtree import select_scales
from tests.core.toys import image_of, normalise, random_scales

SHAPES = [(16, 8), (8, 24), (16, 8), (8, 8), (16, 8)]  # grids of cells, interleaved


def random_maps(height: int, width: int, num_scales: int) -> list[torch.Tensor]:
    """Scores in 0..8, a few of them 0."""
    maps = [8 * torch.rand(height >> scale, width >> scale) for scale in range(1, num_scales)]
    return [scores * (torch.rand(scores.shape) > 0.1) for scores in maps]


def scored(num_scales: int = 4) -> tuple[ScoreMaps, list]:
    inputs = [random_maps(*shape, num_scales) for shape in SHAPES]
    scores = ScoreMaps(num_scales)
    for maps in inputs:
        scores.add(maps)
    return scores, inputs


@pytest.mark.parametrize('num_scales', [2, 3, 4])
@pytest.mark.parametrize('stack', [2, 512])
def test_counts_are_those_of_the_layout(num_scales, stack, monkeypatch):
    monkeypatch.setattr(calibration, 'STACK_INPUTS', stack)
    scores, inputs = scored(num_scales)
    assert scores.num_cells.tolist() == [height * width for height, width in SHAPES]
    for thresholds in ((4.0, 5.0, 3.0), (0.0, 0.0, 0.0), (-1.0, 9.0, -1.0), (9.0, 1.0, 9.0)):
        thresholds = thresholds[:num_scales - 1]
        counts = scores.count_tokens(thresholds)
        for (height, width), maps, row in zip(SHAPES, inputs, counts, strict=True):
            chosen = select_scales([torch.empty(1, height, width), *(scores[None] for scores in maps)], thresholds)
            assert tuple(row.tolist()) == TokenLayout.from_scales(chosen, num_scales=num_scales).scale_counts


def test_counts_of_the_content_are_those_of_the_layout():
    scores, inputs = scored()
    with_padding, contents = ScoreMaps(4), [(16, 5), (3, 24), (1, 1), (8, 8), (9, 7)]
    for maps, content in zip(inputs, contents, strict=True):
        with_padding.add(maps, content)
    assert with_padding.num_content_cells.tolist() == [rows * cols for rows, cols in contents]
    thresholds = (4.0, 5.0, 3.0)
    counts = with_padding.count_tokens(thresholds, content_only=True)
    for (height, width), maps, content, row in zip(SHAPES, inputs, contents, counts, strict=True):
        chosen = select_scales([torch.empty(1, height, width), *(scores[None] for scores in maps)], thresholds)
        layout = TokenLayout.from_scales(chosen, num_scales=4)
        covering = layout.scales[layout.covers_content([content])]
        assert row.tolist() == [(covering == scale).sum() for scale in range(4)]
    assert torch.equal(with_padding.count_tokens(thresholds), scores.count_tokens(thresholds))
    assert torch.equal(scores.count_tokens(thresholds, content_only=True), scores.count_tokens(thresholds))
    with pytest.raises(ValueError, match=r'content_cells=\(17, 8\) is not within the grid \(16, 8\)'):
        with_padding.add(inputs[0], (17, 8))


def test_scores_of_a_chooser_give_the_counts_of_its_layout():
    chooser = PatchChooser(3, (3.0, 2.5), patch_size=4, num_prefix=1)
    x = normalise(image_of(random_scales([0.4, 0.8], 16, 24, 3)))
    scores = ScoreMaps(3)
    for maps in zip(*chooser.scores(x), strict=True):
        scores.add(maps)
    counts = scores.count_tokens(chooser.thresholds)
    assert counts.sum(0).tolist() == list(chooser.layout(x).scale_counts) and counts.min() > 0
    with pytest.raises(ValueError, match='nothing to merge'):
        ScoreMaps(1)


@pytest.mark.parametrize('make', [lambda scores: ratio_family(scores, [0.9, 0.5]),
                                  lambda scores: ratio_family(scores, [1.0]), quantile_family])
def test_families_are_monotone(make):
    scores, _ = scored()
    family = make(scores)
    steps = [family.thresholds(family.highest * step / 20) for step in range(21)]
    tokens = [scores.count_tokens(thresholds).sum(1) for thresholds in steps]
    for thresholds, following in zip(steps, steps[1:], strict=False):
        assert list(thresholds) == sorted(thresholds, reverse=True)
        assert all(a <= b for a, b in zip(thresholds, following, strict=True))
    assert all((a >= b).all() for a, b in zip(tokens, tokens[1:], strict=False))
    assert tokens[-1].sum() < tokens[0].sum() / 4


def test_ratios_are_between_neighbouring_scales():
    scores, _ = scored()
    assert ratio_family(scores, [0.5]).thresholds(4.0) == (4.0, 2.0, 1.0)
    assert ratio_family(scores, [1, 0.15]).thresholds(2.0) == (2.0, 2.0, 0.3)
    family = ratio_family(scores, [0.5])
    assert scores.count_tokens(family.thresholds(family.highest)).sum(1).tolist() == [2, 3, 2, 1, 2]  # all merged
    assert ratio_family(scored(2)[0], [0.8]).thresholds(3.0) == (3.0,)


def test_quantiles_leave_constant_patches_out():
    scores = ScoreMaps(3)
    fine = torch.zeros(4, 4)
    fine[0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    scores.add([fine, torch.tensor([[0.0, 2.0], [0.5, 0.0]])])
    assert quantile_family(scores).thresholds(0.5) == (3.0, 2.0)
    assert quantile_family(scores).thresholds(0.0) == (1.0, 0.5)
    scores.add([fine, torch.full((2, 2), 9.0)])
    assert quantile_family(scores).thresholds(0.5) == (3.0, 3.0)  # no coarse threshold above a finer one
    constant = ScoreMaps(2)
    constant.add([torch.zeros(2, 2)])
    with pytest.raises(ValueError, match='all patches of a scale are constant'):
        quantile_family(constant)


@pytest.mark.parametrize('make', [lambda scores: ratio_family(scores, [0.8]), quantile_family])
@pytest.mark.parametrize('target', [70, 40])
def test_the_search_finds_the_least_thresholds_for_the_largest_input(make, target):
    scores, _ = scored(3)
    measure = lambda thresholds: scores.count_tokens(thresholds).sum(1).max().item()  # noqa: E731
    found = find_thresholds(make(scores), measure, target)
    assert measure(found) <= target
    assert all(float(f'{threshold:.4g}') == threshold for threshold in found)
    assert measure(tuple(threshold - 0.05 for threshold in found)) > target


def test_the_search_meets_a_mean_fraction():
    scores = ScoreMaps(3)
    for _ in range(40):
        scores.add(random_maps(32, 32, 3))
    measure = lambda thresholds: scores.count_tokens(thresholds).sum().item() / (40 * 1024)  # noqa: E731
    found = find_thresholds(ratio_family(scores, [0.8]), measure, 0.7)
    assert 0.695 < measure(found) <= 0.7


@pytest.mark.parametrize('target', [1.0, 0.01])
def test_an_unreachable_target_names_the_range(target):
    scores = ScoreMaps(3)
    scores.add([torch.tensor([[0.0, 5.0], [5.0, 5.0]]), torch.tensor([[6.0]])])
    measure = lambda thresholds: scores.count_tokens(thresholds).sum().item() / 16  # noqa: E731
    with pytest.raises(ValueError, match=r'0\.0625 to 0\.8125 is possible'):
        find_thresholds(ratio_family(scores, [0.8]), measure, target)


@pytest.mark.parametrize('factor', [1e-4, 1.0, 1e3])
def test_rounding_follows_the_scores_magnitude(factor):
    """Upsampling errors are thousands of times smaller than entropies."""
    scores = ScoreMaps(2)
    scores.add([factor * torch.arange(1.0, 65.0).view(8, 8) / 7])
    found, = find_thresholds(ratio_family(scores, []), lambda thresholds: scores.count_tokens(thresholds).sum().item(),
                             256 - 3 * 32)
    assert (scores.count_tokens((found,))[0]).tolist() == [128, 32]
    assert found == pytest.approx(factor * 32 / 7, rel=2e-3)


@pytest.mark.parametrize('kept', [0.97, 0.9, 0.5])
def test_the_search_meets_a_fraction_of_scores_over_many_magnitudes(kept):
    """Upsampling errors of smooth patches are millions of times smaller than those of edges."""
    scores = ScoreMaps(2)
    scores.add([10**torch.linspace(-10, 0, 1024).view(32, 32)])
    measure = lambda thresholds: scores.count_tokens(thresholds).sum().item() / 4096  # noqa: E731
    found = find_thresholds(ratio_family(scores, []), measure, kept)
    assert kept - 0.001 <= measure(found) <= kept


def test_errors():
    scores, inputs = scored()
    with pytest.raises(ValueError, match='got 2 score maps for num_scales=4'):
        scores.add(inputs[0][:2])
    with pytest.raises(ValueError, match=r'map 0 has shape \(8, 4\), wanted \(4, 4\)'):
        scores.add([inputs[0][0], torch.ones(2, 2), torch.ones(1, 1)])
    with pytest.raises(ValueError, match='got 2 thresholds'):
        scores.count_tokens((1.0, 2.0))
    with pytest.raises(ValueError, match='got 3 ratios'):
        ratio_family(scores, [1, 1, 1])
    with pytest.raises(ValueError, match='must not increase'):
        ratio_family(scores, [1.2])
    with pytest.raises(ValueError, match='no image was scored'):
        ScoreMaps(3).count_tokens((1.0, 1.0))
