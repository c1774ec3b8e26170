"""The README's picture."""
import torch
from PIL import Image

from tests.locations import ROOT, load_tool

tool = load_tool('demo/draw_overview.py')


def test_the_picture_is_small_enough_for_a_first_page():
    assert (ROOT / 'docs/overview.jpg').stat().st_size <= 300_000


def test_principal_colours_follow_the_largest_variances():
    """Red tells apart what differs most, blue what differs third most, whatever the channels' order and offsets."""
    rows, cols = torch.meshgrid(torch.linspace(-1, 1, 11), torch.linspace(-1, 1, 13), indexing='ij')
    feature_map = torch.stack((rows + 7, 0.01 * rows * cols, 10 * cols, 0.1 * (rows**2 - 0.4)))
    colours = torch.from_numpy(tool.principal_colours(feature_map))
    assert colours.shape == (11, 13, 3) and colours.min() == 0 and colours.max() == 1
    for channel, values in enumerate((cols, rows, rows**2)):
        together = torch.corrcoef(torch.stack((colours[..., channel].flatten(), values.flatten().double())))
        assert together[0, 1].abs() > 0.9


def test_the_patches_drawn_are_the_models(tmp_path, monkeypatch, capsys):
    """A photograph of one colour becomes patches of 128 px alone: 16 of 1024."""
    monkeypatch.setattr(tool, 'SIZE_PX', 512)
    Image.new('RGB', (64, 48), (90, 120, 30)).save(tmp_path / 'plain.png')
    noise = torch.randint(0, 256, (512, 512, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    Image.fromarray(noise.numpy()).save(tmp_path / 'noise.png')
    for name, tokens in (('plain', 16), ('noise', 1024)):
        out = tmp_path / f'drawn_{name}.jpg'
        tool.main(['--photo', str(tmp_path / f'{name}.png'), '--out', str(out)])
        assert f'{tokens} of 1024 tokens' in capsys.readouterr().out
        with Image.open(out) as picture:
            assert picture.width > 2 * picture.height
