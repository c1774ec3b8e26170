"""The choice of patches from a normalised image."""
import math
import warnings

import numpy as np
import pytest
import torch

from apt_dense import APTEVA02
from apt_dense.core.chooser import PatchChooser
from apt_dense.core.scorers import SCORERS
from tests.core.toys import image_of, normalise, random_scales, scales_of

OFFICIAL = {'entropy_vectorized': 'entropy', 'laplacian_mean': 'laplacian_mean', 'laplacian_max': 'laplacian_max',
            'laplacian_std': 'laplacian_std', 'mse_default': 'upsampling_error'}
CLIP_MEAN, CLIP_STD = (122.7709, 116.7460, 104.0937), (68.5005, 66.6322, 70.3232)


@pytest.mark.parametrize('measure', OFFICIAL)
def test_a_model_chooses_the_patches_of_the_public_code(reference, measure):
    """By its own call, on the normalised image."""
    data = reference('apt_maps_512_china')
    x = normalise(data['in/uint8_hwc'].permute(2, 0, 1)[None])
    for key, thresholds in data['meta']['thresholds'].items():
        if not key.startswith(f'{measure}/'):
            continue
        with torch.device('meta'):
            model = APTEVA02(img_size=512, embed_dims=8, num_heads=1, depth=1, global_block_indexes=(), num_scales=4,
                             thresholds=thresholds, scorer=OFFICIAL[measure])
        layout = model.make_layout(x)
        wanted = data['meta']['counts'][key]['per_size']
        assert layout.scale_counts == tuple(wanted[str(side)] for side in (16, 32, 64, 128))
        scales = scales_of(layout)[0]
        for scale, side in enumerate((16, 32, 64, 128)):
            chosen = (scales == scale)[::2**scale, ::2**scale].numpy(force=True)
            packed = data[f'mask/{key}/{side}'].numpy(force=True)
            mask = np.unpackbits(packed, axis=-1, count=chosen.shape[1]).astype(bool)
            assert np.array_equal(chosen, mask), (key, side)


def test_a_sine_that_patches_of_64_px_lose():
    """A period of 12 px survives halving, by which patches of 32 px are judged, but no quartering."""
    sine = (127.5 + 100 * torch.sin(torch.arange(128) * 2 * math.pi / 12)).round().expand(1, 3, 128, 128)
    assert PatchChooser(3, (-1, 0.004), 'upsampling_error').layout(normalise(sine)).num_tokens == 64
    assert PatchChooser(2, (0.004,), 'upsampling_error').layout(normalise(sine)).num_tokens == 16


@pytest.mark.parametrize('scorer', sorted(SCORERS))
@pytest.mark.parametrize('max_tokens', [None, 40])
def test_scores_and_choose_are_layout(scorer, max_tokens):
    x = normalise(image_of(random_scales([0.3, 0.9], 8, 12, 3)))
    chooser = PatchChooser(3, (1, 1), scorer, patch_size=4, window_size=4, max_tokens=max_tokens)
    maps = chooser.scores(x)
    assert [tuple(scores.shape) for scores in maps] == [(2, 4, 6), (2, 2, 3)]
    chooser.thresholds = [float(scores.median()) for scores in maps]
    layout, again = chooser.layout(x), chooser.choose(maps)
    assert torch.equal(layout.scales, again.scales) and torch.equal(layout.starts, again.starts)
    assert layout.windows.lengths == again.windows.lengths and not layout.is_dense
    assert max_tokens is None or max(layout.images.lengths) <= max_tokens


def test_padding_to_the_size_divisor():
    for chooser, side in ((PatchChooser(3, (1, 1), patch_size=4), 16), (PatchChooser(patch_size=14), 14),
                          (PatchChooser(2, (1,), window_size=6), 96)):
        assert chooser.size_divisor_px == side
        x = torch.randn(2, 3, side + 3, 2 * side)
        padded = chooser.pad(x)
        assert padded.shape == (2, 3, 2 * side, 2 * side)
        assert torch.equal(padded[:, :, :side + 3], x) and (padded[:, :, side + 3:] == 0).all()
        assert chooser.layout(padded).height * chooser.patch_size == 2 * side


@pytest.mark.parametrize(('settings', 'message'), [
    ({'num_scales': 0}, 'num_scales=0 must be a whole number from 1 on'),
    ({'thresholds': (1,)}, 'got 1 thresholds'),
    ({'scorer': 'edges'}, "unknown scorer 'edges'"),
    ({'img_mean': (0.5,)}, r'img_mean=\(0.5,\) must be three finite numbers'),
    ({'img_std': (1, 1, float('nan'))}, 'must be three finite numbers'),
    ({'img_std': (1, 0, 1)}, 'must be positive'),
    ({'num_prefix': -1}, 'num_prefix=-1 must be a whole number from 0 on'),
])
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        PatchChooser(**{'num_scales': 1, 'thresholds': (), **settings})


def test_thresholds_that_do_not_fit_are_refused_when_they_are_set():
    chooser = PatchChooser(3, (1, 1))
    with pytest.raises(ValueError, match='got 1 thresholds'):
        chooser.thresholds = (2,)
    assert chooser.thresholds == (1, 1)
    with pytest.raises(ValueError, match='got 1 score maps for num_scales=3'):
        chooser.choose(chooser.scores(torch.zeros(1, 3, 64, 64))[:1])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_grey_levels_that_a_precision_cannot_tell_apart(dtype):
    """bfloat16 has 8 bits: beyond 2 standard deviations of more than 64, two grey levels are one number."""
    levels = torch.arange(256).repeat(4).view(1, 1, 32, 32).expand(1, 3, 32, 32)
    chooser = PatchChooser(2, (1,), img_mean=CLIP_MEAN, img_std=CLIP_STD)
    x = normalise(levels, mean=CLIP_MEAN, std=CLIP_STD)
    assert torch.equal(chooser.restore(x), levels.float())
    if dtype == torch.bfloat16:
        with pytest.raises(ValueError, match=r'the input is torch.bfloat16.*give the image in float32'):
            chooser.layout(x.to(dtype))
    else:
        assert torch.equal(chooser.restore(x.to(dtype)), levels.float())
    half = PatchChooser(2, (1,), img_mean=(127.5,) * 3, img_std=(127.5,) * 3)
    assert torch.equal(half.restore(normalise(levels, dtype, (127.5,) * 3, (127.5,) * 3)), levels.float())


def test_the_chooser_of_a_model_without_the_model():
    arguments = dict(img_size=64, patch_size=8, window_size=4, num_scales=2, thresholds=(3,), scorer='laplacian_max',
                     max_tokens=50, img_mean=(1, 2, 3), img_std=(4, 5, 6))
    alone = APTEVA02.build_chooser(**arguments, embed_dims=4, num_heads=1)
    model = APTEVA02(**arguments, embed_dims=4, num_heads=1)
    assert vars(alone) == vars(model.chooser)
    assert APTEVA02.build_chooser(depth=2, global_block_indexes=(0, -1)).window_size == 0
    with pytest.raises(TypeError, match='threshold'):
        APTEVA02.build_chooser(threshold=(3,))


def test_tokens_that_cover_content():
    """Against a loop over the cells."""
    scales = random_scales([0.3, 0.9], 8, 12, 3)
    content = [(5, 12), (8, 1)]
    for num_prefix in (0, 1, 5):
        chooser = PatchChooser(3, (1.5, 1.5), patch_size=4, num_prefix=num_prefix)
        layout = chooser.layout(normalise(image_of(scales)))
        index = torch.arange(layout.num_tokens, dtype=torch.float32)
        token_of_cell = layout.expand(index[:, None])[:, 0].long()
        wanted = {int(token) for image, (rows, cols) in zip(token_of_cell, content, strict=True)
                  for token in image[:rows, :cols].flatten()}
        assert set(layout.covers_content(content).nonzero()[:, 0].tolist()) == wanted
        for wrong in ([(5, 12)], [(5, 13), (1, 1)], [(0, 1), (1, 1)]):
            with pytest.raises(ValueError, match='wanted 2 pairs of rows and columns within the grid 8x12'):
                layout.covers_content(wrong)


@pytest.mark.parametrize('scorer', ['upsampling_error', 'upsampling_error_max', 'resizing_error', 'resizing_error_max',
                                    'variance', 'variance_max'])
def test_thresholds_of_another_scorer_are_told(scorer):
    """(5.75, 4.0) are bits of an entropy; where no score is above 1 they merge everything."""
    images = torch.rand(1, 3, 64, 64).round() * 255  # black and white: the worst
    chooser = PatchChooser(3, (1e-3, 1e-3), scorer, img_mean=(0, 0, 0), img_std=(1, 1, 1))
    assert 0 < max(scores.max() for scores in chooser.scores(images)) <= 1
    with pytest.warns(UserWarning, match=f"no score of '{scorer}' is above 1.*scorer='entropy'"):
        chooser.thresholds = (5.75, 4.0)
    with pytest.warns(UserWarning, match='no score'):
        PatchChooser(3, (5.75, 4.0), scorer)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        PatchChooser(3, (5.75, 4.0), 'entropy')
        PatchChooser(3, (math.inf, 1.0), scorer)  # meant
