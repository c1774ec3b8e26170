"""The benchmark's images keep the tokens that they promise."""
import numpy as np
import pytest
import torch
from PIL import Image

from apt_dense import APTEVA02, TokenLayout
from apt_dense.benchmark.inputs import SYNTHETIC_THRESHOLD, build_batch, synthetic_scales


def scorer_model(num_scales: int, img_size: int) -> APTEVA02:
    return APTEVA02(img_size=img_size, embed_dims=8, depth=1, num_heads=1, global_block_indexes=(0,),
                    num_scales=num_scales, thresholds=(SYNTHETIC_THRESHOLD,) * (num_scales - 1))


@pytest.mark.parametrize('kept', [0.9, 0.7, 0.5, 0.3, 0.02])
def test_fraction_and_unevenness(kept):
    scales = synthetic_scales(kept, 96, 64)
    layout = TokenLayout.from_scales(scales[None], 32, 4)
    assert abs(layout.num_tokens - kept * 96 * 64) <= 1.5
    if kept > 0.02:
        assert min(layout.scale_counts[:3]) > 0, 'a mixture of scales'
        assert max(layout.windows.lengths) > 1.15 * min(layout.windows.lengths)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('num_scales', [2, 4])
def test_the_quadtree_gives_the_map_back(dtype, num_scales):
    kept = (0.8, 0.35)
    layout = scorer_model(num_scales, 512).make_layout(build_batch(512, kept, num_scales=num_scales).to(dtype))
    maps = torch.stack([synthetic_scales(fraction, 32, 32, num_scales, seed) for seed, fraction in enumerate(kept)])
    wanted = TokenLayout.from_scales(maps, 0, num_scales)
    assert layout.images.lengths == wanted.images.lengths
    assert torch.equal(layout.scales, wanted.scales)


def test_all_and_as_few_as_possible():
    assert synthetic_scales(1.0, 16, 24).max() == 0
    assert synthetic_scales(1 / 64, 16, 24).min() == 3
    assert synthetic_scales(1.0, 16, 24, num_scales=1).max() == 0


@pytest.mark.parametrize('kept', [0.01, 1.2])
def test_fractions_out_of_reach(kept):
    with pytest.raises(ValueError, match='choose from 0.0156 to 1'):
        synthetic_scales(kept, 16, 24)


def test_photograph_is_normalised_and_padded_like_a_detectors(tmp_path):
    Image.fromarray(np.full((30, 60, 3), 124, np.uint8)).save(tmp_path / 'photo.png')
    x = build_batch(64, photos=[tmp_path / 'photo.png'])[0]
    assert x.shape == (3, 64, 64)
    assert x[:, 32:].abs().max() == 0
    torch.testing.assert_close(x[0, 5, 5], torch.tensor((124 - 123.675) / 58.395))


def test_a_file_that_is_no_photograph(tmp_path):
    (tmp_path / 'photo.png').write_text('no image')
    with pytest.raises(ValueError, match=r'photo.png cannot be read as an image'):
        build_batch(64, photos=[tmp_path / 'photo.png'])
