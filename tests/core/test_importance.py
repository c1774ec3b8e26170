import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from apt_dense import patch_entropy, patch_laplacian, patch_upsampling_error, select_scales
from apt_dense.core.importance import INCOMPLETE_PATCH_ENTROPY, check_finite
from apt_dense.core.scorers import SCORERS, get_scorer
from tests import oracle

# Random numbers have nothing to be compared with.
MEASURES = sorted(set(SCORERS) - {'random'})

OFFICIAL = {  # the official name of a measure: ours
    'entropy_vectorized': patch_entropy,
    'laplacian_mean': SCORERS['laplacian_mean'],
    'laplacian_max': SCORERS['laplacian_max'],
    'laplacian_std': SCORERS['laplacian_std'],
    'mse_default': patch_upsampling_error,
    'mse_tokenizer': lambda image: patch_upsampling_error(image, factors=(1, 0.5, 0.25, 0.25)),
}


def random_image(*shape: int) -> torch.Tensor:
    """uint8 (B, 3, H, W), smooth on the left, noise on the right, each image darker than the one before."""
    contrast = torch.linspace(2, 255, shape[-1]) / torch.arange(1, shape[0] + 1).view(-1, 1, 1, 1)
    return (torch.rand(shape) * contrast).to(torch.uint8)


@pytest.mark.parametrize(('height', 'width'), [(32, 48), (24, 40), (37, 50), (7, 20), (3, 5)])
@pytest.mark.parametrize('scorer', MEASURES)
def test_scores_equal_one_patch_at_a_time(scorer, height, width):
    image = random_image(2, 3, height, width)
    scores = get_scorer(scorer)(image, 4, 3)
    for score, wanted in zip(scores, oracle.patch_scores(image, scorer, 4, 3), strict=True):
        assert score.dtype == torch.float32
        torch.testing.assert_close(score, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('bins', [1, 2, 100, 256, 512, 1000])
def test_entropy_of_other_bins(bins):
    image = random_image(2, 3, 16, 24)
    for score, wanted in zip(patch_entropy(image, 8, 2, bins), oracle.patch_scores(image, 'entropy', 8, 2, bins),
                             strict=True):
        torch.testing.assert_close(score, wanted, atol=1e-5, rtol=0)


def test_entropy_worked_numbers():
    image = torch.zeros(2, 3, 16, 32)
    image[0, :, :, 8:16] = 200  # half and half: 1 bit
    image[0, :, :, 16:] = torch.arange(256.).view(16, 16)  # every grey level once: 8 bits
    image[1] = 255  # one value: exactly 0
    score = patch_entropy(image, 16, 1)[0]
    assert score.tolist() == [[[1, 8]], [[0, 0]]]
    # A patch of 32 of that and its copy below: 2 of each of 256 levels, and 256 more of the levels 0 and 200.
    shares = torch.tensor([258.] * 2 + [2.] * 254) / 1024
    score = patch_entropy(torch.cat([image, image], 2), 16, 2)[1]
    torch.testing.assert_close(score[0, 0, 0], -(shares * shares.log2()).sum(), atol=1e-5, rtol=0)


def test_entropy_of_a_scale_does_not_depend_on_the_finest():
    image = random_image(2, 3, 64, 96)
    torch.testing.assert_close(patch_entropy(image, 8, 4)[1:], patch_entropy(image, 16, 3), atol=1e-5, rtol=0)


def test_entropy_bins_of_values_at_the_ends():
    """255 lies in the last bin, with 254.9; values outside count as the ends."""
    image = torch.full((2, 3, 4, 8), 255 / 0.9999)
    image[:, :, :2] = 254.9 / 0.9999
    image[:, :, 3] = 300
    assert patch_entropy(image, 4, 1)[0].tolist() == [[[0, 0]]] * 2
    image = torch.zeros(2, 3, 4, 8)
    image[:, :, :2] = -20
    assert patch_entropy(image, 4, 1)[0].tolist() == [[[0, 0]]] * 2


def test_entropy_of_incomplete_patches_is_above_every_threshold():
    scores = patch_entropy(torch.zeros(2, 3, 40, 56), 16, 3)
    assert [tuple(score.shape) for score in scores] == [(2, 3, 4), (2, 2, 2), (2, 1, 1)]
    assert (scores[0][:, :2, :3] == 0).all() and (scores[1][:, :1, :1] == 0).all()
    for score, rows, cols in zip(scores, (2, 1, 0), (3, 1, 0), strict=True):
        assert (score[:, rows:] == INCOMPLETE_PATCH_ENTROPY).all()
        assert (score[:, :, cols:] == INCOMPLETE_PATCH_ENTROPY).all()


def test_laplacian_worked_numbers():
    image = torch.zeros(2, 3, 8, 16)
    image[0, :, 3, 5] = 255  # one white pixel: 8 on it, 1 on each of the 8 around it
    white = 0.9999
    torch.testing.assert_close(patch_laplacian(image, 8, 1, 'max')[0], torch.tensor([[[8 * white, 0]], [[0, 0]]]))
    torch.testing.assert_close(patch_laplacian(image, 8, 1, 'mean')[0], torch.tensor([[[white / 4, 0]], [[0, 0]]]))
    values = torch.tensor([8.] + [1.] * 8 + [0.] * 55) * white
    torch.testing.assert_close(patch_laplacian(image, 8, 1, 'std')[0][0, 0, 0], values.std())


def test_upsampling_error_worked_numbers():
    assert patch_upsampling_error(torch.full((2, 3, 4, 8), 77), 4, 1)[0].tolist() == [[[0, 0]]] * 2
    # Factor 1 changes nothing; the last factor serves all coarser scales.
    image = random_image(2, 3, 16, 24)
    scores = patch_upsampling_error(image, 4, 3, factors=(1, 0.5))
    assert (scores[0] == 0).all()
    torch.testing.assert_close(scores[2], patch_upsampling_error(image, 16, 1, factors=(0.5,))[0])


@pytest.mark.parametrize('patch_size', [8, 14, 16, 32])
@pytest.mark.parametrize('scorer', [name for name in sorted(SCORERS) if name not in oracle.PRICES])
def test_a_score_depends_on_the_side_of_its_patch_only(scorer, patch_size):
    """Not on the size at which scoring begins: models leave out the base patches.  (A price depends on all smaller.)"""
    image = random_image(2, 3, 8 * patch_size, 12 * patch_size)
    every, merged = get_scorer(scorer)(image, patch_size, 4), get_scorer(scorer)(image, 2 * patch_size, 3)
    torch.testing.assert_close(merged, every[1:], atol=1e-5, rtol=1e-5)


def test_upsampling_factors_follow_the_public_code():
    """0.5 for the base patch and twice its side, 0.25 for four and eight times, also with base patches of 14 px."""
    for patch_size in (14, 16):
        image = random_image(2, 3, 8 * patch_size, 16 * patch_size)
        by_position = patch_upsampling_error(image, patch_size, 4, factors=(0.5, 0.5, 0.25, 0.25))
        assert all(map(torch.equal, patch_upsampling_error(image, patch_size, 4), by_position))
    scores = patch_upsampling_error(image, 16, 2, factors={16: 1, 32: 0.25})
    assert (scores[0] == 0).all() and (scores[1] > 0).any()


@pytest.mark.parametrize('scorer', sorted(SCORERS))
def test_dtype_of_the_image_does_not_matter(scorer):
    image = random_image(2, 3, 24, 40)
    wanted = get_scorer(scorer)(image, 4, 3)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64):
        torch.testing.assert_close(get_scorer(scorer)(image.to(dtype), 4, 3), wanted, atol=0, rtol=0)


@pytest.mark.parametrize('scorer', sorted(SCORERS))
def test_images_are_independent_and_unchanged(scorer):
    image = random_image(3, 3, 24, 40).float()
    before = image.clone()
    together = get_scorer(scorer)(image, 4, 3)
    alone = get_scorer(scorer)(image[1:2], 4, 3)
    torch.testing.assert_close([score[1:2] for score in together], alone, atol=1e-6, rtol=0)
    assert torch.equal(image, before)


@pytest.mark.parametrize('measure', OFFICIAL)
@pytest.mark.parametrize('name', ['apt_maps_512_china', 'apt_maps_odd_200x312'])
def test_official_scores_and_masks(reference, name, measure):
    data = reference(name)
    scores = OFFICIAL[measure](data['in/uint8_hwc'].permute(2, 0, 1)[None])
    sizes = (16, 32, 64, 128)
    for score, size in zip(scores, sizes, strict=True):
        torch.testing.assert_close(score[0], data[f'map/{measure}/{size}'], atol=1e-4, rtol=0)
    settings = [key for key in data['meta']['thresholds'] if key.startswith(f'{measure}/')]
    assert settings
    for key in settings:
        scales = select_scales(scores, data['meta']['thresholds'][key])[0]
        for scale, size in enumerate(sizes):
            chosen = (scales == scale)[::2**scale, ::2**scale].numpy(force=True)
            packed = data[f'mask/{key}/{size}'].numpy(force=True)
            mask = np.unpackbits(packed, axis=-1, count=chosen.shape[1]).astype(bool)
            assert np.array_equal(chosen, mask), (key, size)
            assert chosen.sum() == data['meta']['counts'][key]['per_size'][str(size)]


@pytest.mark.parametrize('scorer', sorted(SCORERS))
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_non_finite_pixels_are_an_error_that_names_the_images(scorer, value):
    image = random_image(4, 3, 16, 24).float()
    image[1, 0, 3, 5] = image[3, 2, 15, 23] = value
    with pytest.raises(ValueError, match=r'NaN or infinite pixels in image\(s\) \[1, 3\] of the batch'):
        get_scorer(scorer)(image, 4, 2)


def test_check_finite_of_cancelling_infinities_and_of_large_numbers():
    image = torch.zeros(3, 3, 4, 6)
    image[2, 0, 0, 0], image[2, 0, 0, 1] = float('inf'), -float('inf')
    with pytest.raises(ValueError, match=r'image\(s\) \[2\]'):
        check_finite(image)
    check_finite(torch.full((2, 3, 4, 6), 3e38))  # its sum is infinite, its pixels are not
    check_finite(torch.full((2, 3, 4, 6), 6e4, dtype=torch.float16))


@pytest.mark.parametrize('scorer', sorted(SCORERS))
@pytest.mark.parametrize('shape', [(3, 16, 24), (2, 1, 16, 24), (2, 4, 16, 24), (0, 3, 16, 24), (2, 3, 0, 24)])
def test_bad_shapes(scorer, shape):
    with pytest.raises(ValueError, match=r'image has shape \(.*\), wanted \(B, 3, H, W\)'):
        get_scorer(scorer)(torch.zeros(shape), 4, 2)


def test_bad_arguments():
    image = torch.zeros(2, 3, 16, 24)
    with pytest.raises(ValueError, match="reduction='sum' is not one of 'mean', 'max', 'std'"):
        patch_laplacian(image, 4, 2, 'sum')
    with pytest.raises(ValueError, match=r'needs an image of at least 2 x 2 pixels, got \(1, 24\): pad it first'):
        patch_laplacian(image[:, :, :1], 4, 2)
    for factors in ((), (0.5, 0), (1.5,), (-0.5,), {}, {16: 0.5, 32: 1.5}):
        with pytest.raises(ValueError, match=r'factors=\(.*\) must be one or more numbers in \(0, 1\]'):
            patch_upsampling_error(image, 4, 2, factors)
    with pytest.raises(ValueError, match="unknown scorer 'edges': choose one of .*'entropy', 'laplacian_max'"):
        get_scorer('edges')


@pytest.mark.parametrize('name', SCORERS)
def test_no_score_is_a_product_that_a_gpu_rounds(name):
    """TF32 has ten bits after the point in convolutions and matrix products: other patches would be chosen."""
    with Products() as products:
        get_scorer(name)(torch.rand(2, 3, 64, 96) * 255, 16, 3)
    assert not products.found


class Products(TorchDispatchMode):
    """Notes convolutions and matrix products."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(word in function.name() for word in ('conv', 'mm', 'matmul')):
            self.found.append(function.name())
        return function(*args, **kwargs or {})
