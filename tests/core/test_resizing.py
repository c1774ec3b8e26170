import pytest
import torch

from apt_dense import PatchChooser
from apt_dense.core.importance import patch_random
from apt_dense.core.quadtree import select_scales
from apt_dense.core.resizing import break_even_prices, patch_rate_distortion, patch_resizing_error
from tests.core.toys import normalise


def test_a_small_thing_counts_as_much_in_a_large_patch():
    """By its maximum over blocks, and less and less by the mean."""
    image = torch.full((1, 3, 128, 128), 100.)
    image[:, :, 43:46, 43:46] = 200
    halved = {32: 0.5}
    largest, mean = ([scores.max().item() for scores in patch_resizing_error(image, 32, 2, reduction, halved)]
                     for reduction in ('max', 'mean'))
    assert 0 < largest[0] == largest[1]
    assert mean[1] == pytest.approx(mean[0] / 4)


def test_blocks_of_patches_that_are_no_multiples_of_8_px():
    image = torch.randint(0, 256, (1, 3, 56, 56))
    scores = patch_resizing_error(image, 28, 2, 'max')
    assert [tuple(one.shape) for one in scores] == [(1, 2, 2), (1, 1, 1)]
    assert (scores[0] >= patch_resizing_error(image, 28, 2)[0]).all()


def test_factors_are_what_a_patch_is_resized_by():
    """Eight grey levels, each 8 px wide: halving loses edges only, quartering more; a level 16 px wide is safe."""
    steps = (torch.arange(128) // 8 % 8 * 30.).expand(1, 3, 128, 128)
    half, quarter, eighth = (scores.mean().item() for scores in patch_resizing_error(steps, 32, 3))
    assert 0 < half < quarter < eighth


def _total(distortions: list[torch.Tensor], scales: torch.Tensor, price: float) -> float:
    """Distortion and price of the tokens of a choice."""
    total = 0.0
    for scale in range(len(distortions) + 1):
        chosen = (scales == scale)[:, ::2**scale, ::2**scale]
        total += price * chosen.sum().item()
        total += distortions[scale - 1][chosen].sum().item() if scale else 0
    return total


def _best_total(distortions: list[torch.Tensor], price: float) -> float:
    """The least total of any quadtree, bottom up."""
    cost = torch.full((1, 16, 16), price, dtype=torch.float64)
    for distortion in distortions:
        cost = cost.unfold(1, 2, 2).unfold(2, 2, 2).sum((3, 4)).minimum(distortion + price)
    return cost.sum().item()


@pytest.mark.parametrize('seed', range(6))
def test_one_threshold_on_the_prices_makes_the_best_quadtree(seed):
    """Of any distortions, also where a patch loses less than its parts, or nothing."""
    torch.manual_seed(seed)
    distortions = [torch.rand(1, 8 >> scale, 8 >> scale, dtype=torch.float64)**3 * 4**scale for scale in range(3)]
    distortions[1][0, 0] = 0
    prices = break_even_prices(distortions)
    base = torch.zeros(1, 16, 16)
    seen = set()
    for price in (1e-4, 0.01, 0.05, 0.2, 0.5, 1.0, 3.0, 30.0):
        scales = select_scales([base, *prices], (price,) * 3)
        assert _total(distortions, scales, price) == pytest.approx(_best_total(distortions, price), rel=1e-12)
        seen.add(scales.unique().numel())
    assert len(seen) > 1


def test_prices_are_exact():
    """Four cells for a distortion of 0.3: 0.1 a token saved.  Then three patches and four cells for 0.6 more."""
    finest = torch.full((1, 2, 2), 0.3, dtype=torch.float64)
    finest[0, 1, 1] = 3
    prices = break_even_prices([finest, torch.full((1, 1, 1), 1.5, dtype=torch.float64)])
    torch.testing.assert_close(prices[0], torch.tensor([[[0.1, 0.1], [0.1, 1.0]]], dtype=torch.float64))
    # Cut: 3 * (0.3 + p) + 4 p.  Whole: 1.5 + p.  Equal at p = 0.1, where the smaller ones merge too.
    torch.testing.assert_close(prices[1], torch.full((1, 1, 1), 0.1, dtype=torch.float64))


def test_a_power_prefers_many_small_losses_to_a_large_one():
    image = torch.full((1, 3, 32, 64), 100.)
    image[:, :, 4:6, 4:6] = 255
    image[:, :, :, 32:] += torch.randint(-12, 13, (32, 32))
    once, squared = (patch_rate_distortion(image, 32, 1, power)[0][0, 0] for power in (1.0, 2.0))
    assert once[0] / once[1] < squared[0] / squared[1]


def test_random_numbers_follow_from_the_image():
    images = torch.randint(0, 256, (3, 3, 64, 96))
    scores = patch_random(images, 8, 3)
    assert all(torch.equal(one[2:], alone) for one, alone in zip(scores, patch_random(images[2:], 8, 3), strict=True))
    assert not torch.equal(scores[0][0], scores[0][1])
    assert min(one.min() for one in scores) > 0 and max(one.max() for one in scores) <= 1
    kept = PatchChooser(2, (0.5,), 'random').layout(normalise(torch.randint(0, 256, (4, 3, 512, 512)).float()))
    assert 0.5 < kept.num_tokens / (4 * 32 * 32) < 0.75  # half of the patches are merged: 0.625


def test_bad_arguments():
    image = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="reduction='std' is not one of 'mean', 'max'"):
        patch_resizing_error(image, 16, 2, 'std')
    with pytest.raises(ValueError, match='patch_size=7 cannot be halved'):
        patch_rate_distortion(image, 7, 2)
