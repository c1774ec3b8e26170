"""The patch visualiser: what it counts, draws and refuses."""

import numpy as np
import pytest
from PIL import Image

from apt_dense.calibration.images import PATCH_COLOURS
from tests.locations import CONFIGS, load_tool

CONFIG = CONFIGS / 'apt_eva02_ti_demo_det.py'


@pytest.fixture(scope='module')
def tool():
    return load_tool('analysis_tools/visualize_patches.py')


@pytest.fixture
def half_noise() -> np.ndarray:
    """128 x 256 px: the left half constant, the right half noise."""
    image = np.full((128, 256, 3), 60, np.uint8)
    image[:, 128:] = np.random.default_rng(0).integers(0, 256, (128, 128, 3))
    return image


def test_counts_and_colours(tool, tmp_path, half_noise, capsys):
    Image.fromarray(half_noise).save(tmp_path / 'scene.png')
    assert tool.main([str(tmp_path / 'scene.png'), '--img-size', '0', '--out-dir', str(tmp_path / 'out')]) == 0
    line = capsys.readouterr().out
    assert '65 tokens of 128 cells' in line
    assert '(50.8% kept): 64 of 16 px, 0 of 32 px, 0 of 64 px, 1 of 128 px' in line
    drawn = np.asarray(Image.open(tmp_path / 'out/scene_patches.png'))
    assert drawn.shape == half_noise.shape
    coarse = tuple(int(PATCH_COLOURS[3][i:i + 2], 16) for i in (1, 3, 5))
    assert tuple(drawn[0, 64]) == coarse and tuple(drawn[64, 127]) == coarse
    assert (drawn[10:118, 10:118] == drawn[10, 10]).all()  # nothing is drawn inside the large patch
    assert not (drawn[8, 140:250] == coarse).all(1).any()


def test_padding_to_the_detectors_square(tool, tmp_path, half_noise, capsys):
    Image.fromarray(half_noise).save(tmp_path / 'scene.png')
    tool.main([str(tmp_path / 'scene.png'), '--img-size', '256', '--out-dir', str(tmp_path)])
    assert '67 tokens of 256 cells' in capsys.readouterr().out  # two more patches of 128 px below


@pytest.mark.parametrize('resampling', ['pillow', 'opencv'])
def test_the_resampling_is_said_and_matters(tool, tmp_path, capsys, resampling):
    """Lines of 1 px, 4 times smaller: an average is smooth, four pixels of them are not."""
    image = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (512, 512, 1)).repeat(3, 2)
    Image.fromarray(image).save(tmp_path / 'noise.png')
    tool.main([str(tmp_path / 'noise.png'), '--img-size', '128', '--scorer', 'laplacian_mean', '--thresholds', '1', '1',
               '1', '--resampling', resampling, '--out-dir', str(tmp_path)])
    first, second = capsys.readouterr().out.splitlines()
    assert f'longest side to 128 px by {resampling}' in first
    assert ('1 tokens of 64 cells' if resampling == 'pillow' else '64 tokens of 64 cells') in second


@pytest.mark.parametrize(('shape', 'windows', 'size'), [
    ((256, 256), 1, (256, 256)), ((256, 400), 2, (256 * 2 + 8, 256)), ((60, 40), 2, (256, 256 * 2 + 8))])
def test_the_windows_of_a_segmentor(tool, tmp_path, capsys, shape, windows, size):
    """Its layouts have class tokens; its pipeline resizes the short side to 256 px."""
    Image.fromarray(np.full((*shape, 3), 60, np.uint8)).save(tmp_path / 'scene.png')
    config = CONFIGS / 'apt_eva02_ti_demo_seg.py'
    assert tool.main([str(tmp_path / 'scene.png'), '--config', str(config), '--out-dir', str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f'{4 * windows} tokens of {256 * windows} cells' in printed
    assert (f'in {windows} windows' in printed) == (windows > 1)
    assert Image.open(tmp_path / 'scene_patches.png').size == size


def test_options_that_a_config_has_itself(tool, capsys):
    for option in (['--img-size', '256'], ['--resampling', 'opencv'], ['--patch-size', '16']):
        with pytest.raises(SystemExit):
            tool.parse_args(['a.png', '--config', str(CONFIG), *option])
        assert f'{option[0]} has no meaning with --config' in capsys.readouterr().err


def test_thresholds_over_those_of_a_config(tool, tmp_path, half_noise, capsys):
    Image.fromarray(half_noise).save(tmp_path / 'scene.png')
    arguments = [str(tmp_path / 'scene.png'), '--config', str(CONFIG), '--out-dir', str(tmp_path)]
    assert tool.main(arguments) == 0
    assert 'without padding 65 of 128 (50.8% kept)' in capsys.readouterr().out
    assert tool.main([*arguments, '--thresholds', '-1', '--scorer', 'laplacian_max']) == 0
    assert '256 tokens of 256 cells' in capsys.readouterr().out


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', 'CMYK', '1'])
def test_images_of_any_mode(tool, tmp_path, half_noise, mode):
    path = tmp_path / ('image.tif' if mode == 'CMYK' else 'image.png')
    Image.fromarray(half_noise).convert(mode).save(path)
    assert tool.main([str(path), '--img-size', '128', '--out-dir', str(tmp_path / 'out')]) == 0
    assert Image.open(tmp_path / 'out/image_patches.png').size == (128, 64)


def test_extreme_shapes(tool, tmp_path):
    for name, shape in (('dot', (1, 1, 3)), ('strip', (3, 900, 3))):
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / f'{name}.png')
        assert tool.main([str(tmp_path / f'{name}.png'), '--img-size', '128', '--out-dir', str(tmp_path)]) == 0


def test_a_broken_file_does_not_stop_the_others(tool, tmp_path, half_noise, capsys):
    (tmp_path / 'broken.png').write_text('no image')
    Image.fromarray(half_noise).save(tmp_path / 'good.png')
    paths = [str(tmp_path / name) for name in ('broken.png', 'missing.png', 'good.png')]
    assert tool.main([*paths, '--img-size', '128', '--out-dir', str(tmp_path / 'out')]) == 1
    errors = capsys.readouterr().err
    assert 'broken.png cannot be read as an image' in errors and 'missing.png cannot be read as an image' in errors
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['good_patches.png']


def test_images_of_one_name_get_files_of_their_own(tool, tmp_path, half_noise):
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
        Image.fromarray(half_noise).save(tmp_path / folder / 'image.png')
    tool.main([str(tmp_path / 'a/image.png'), str(tmp_path / 'b/image.png'), '--img-size', '0', '--out-dir',
               str(tmp_path / 'out')])
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['image_patches.png', 'image_patches_2.png']
