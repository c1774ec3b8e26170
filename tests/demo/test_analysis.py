"""What the demo shows, without a page: shares, tokens, the speed-up; and what is no photograph."""
import numpy as np
import pytest
import torch
from PIL import Image

from apt_dense.core.eva02 import APTEVA02, PRESETS
from apt_dense.core.flops import ideal_speedup
from apt_dense.core.layout import TokenLayout
from apt_dense.demo.analysis import MAX_MEGAPIXELS, analyse, read_upload
from tests.demo.odd_files import BAD, GOOD, write_odd_files


@pytest.fixture(scope='module')
def photograph() -> Image.Image:
    """384 x 512 px, more and more noise to the right."""
    noise = np.random.default_rng(0).normal(size=(384, 512, 3)) * np.linspace(0, 40, 512)[:, None]
    return Image.fromarray((128 + noise).clip(0, 255).astype(np.uint8))


def test_a_share_is_kept(photograph):
    for kept in (0.8, 0.6):
        found = analyse(photograph, 512, (1, 1, 1), kept)
        assert kept - 0.05 < found.kept <= kept and len(set(found.thresholds)) == 1
        again = analyse(photograph, 512, found.thresholds)
        assert again.tokens == found.tokens and again.speed == found.speed


def test_tokens_and_speed_add_up(photograph):
    found = analyse(photograph, 512, (4, 3, 2))
    counts = [int(count) for _, count, _ in found.tokens]
    assert [side for side, _, _ in found.tokens] == ['16 px', '32 px', '64 px', '128 px']
    assert sum(count * 4**scale for scale, count in enumerate(counts)) == 32 * 32 and sorted(counts)[1] > 0
    assert sum(float(share[:-1]) for _, _, share in found.tokens) == pytest.approx(100, abs=0.3)
    assert found.heat_maps.width > 3 * 512 and found.patches.height > 512


def test_nothing_merged_is_the_dense_backbone(photograph):
    found = analyse(photograph, 512, (-1, -1, -1))
    assert found.kept == 1 and [row[3] for row in found.speed] == ['1.00 x', '1.00 x']
    assert [row[0] for row in found.speed] == ['EVA-02-B', 'EVA-02-L'] and found.speed[0][1] == found.speed[0][2]


def test_the_speed_up_is_that_of_the_multiply_adds():
    """A black picture: all in the largest patches."""
    found = analyse(Image.new('RGB', (512, 512)), 512, (1, 1, 1))
    layout = TokenLayout.from_scales(torch.full((1, 32, 32), 3), 32, 4)
    for row, name in zip(found.speed, 'BL', strict=True):
        with torch.device('meta'):
            model = APTEVA02(**PRESETS[name], img_size=512, num_scales=4, thresholds=(1, 1, 1))
        assert row[3] == f'{ideal_speedup(model, layout):.2f} x' and float(row[3][:-2]) > 5


def test_shares_out_of_reach():
    """Flat: all merges whatever the share; noise: what is nearest is shown."""
    assert analyse(Image.new('RGB', (300, 200)), 512, (1, 1, 1), 0.9).kept < 0.2
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8))
    assert analyse(noise, 512, (1, 1, 1), 0.001).kept == 16 / 1024
    assert analyse(noise, 512, (1, 1, 1), 1.0).kept == 1


def test_what_makes_no_sense(photograph):
    with pytest.raises(ValueError, match='size_px=500: choose one of'):
        analyse(photograph, 500, (1, 1, 1))
    with pytest.raises(ValueError, match='Give a number for each threshold'):
        analyse(photograph, 512, (1, None, 1))


def test_odd_files(tmp_path):
    good, bad = write_odd_files(tmp_path)
    assert len(good) == len(GOOD) and len(bad) == len(BAD)
    for path, name in zip(good, GOOD, strict=True):
        image = read_upload(path)
        assert image.mode == 'RGB' and (image.size == (90, 140)) == (name == 'turned'), name
    for path, name in zip(bad, BAD, strict=True):
        with pytest.raises(ValueError) as caught:
            read_upload(path)
        message = str(caught.value)
        assert message.startswith(path.name) and str(tmp_path) not in message and len(message) < 400, (name, message)
        assert {'too large': f'81 megapixels: give one of at most {MAX_MEGAPIXELS}', 'dark 16 bits': '16 bits',
                'cut': 'cannot be read as an image'}.get(name, 'is no picture that can be read') in message, message
    with pytest.raises(ValueError, match='Drop a photograph to begin'):
        read_upload(None)
