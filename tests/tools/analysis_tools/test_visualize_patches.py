"""The patch visualiser: what it counts, draws and refuses."""

import cv2
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
    assert 'without padding 89 of 128 (69.5% kept)' in capsys.readouterr().out
    assert tool.main([*arguments, '--thresholds', '-1', '--scorer', 'laplacian_max']) == 0
    assert '256 tokens of 256 cells' in capsys.readouterr().out


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', 'CMYK', '1'])
def test_images_of_any_mode(tool, tmp_path, half_noise, mode):
    path = tmp_path / ('image.tif' if mode == 'CMYK' else 'image.png')
    Image.fromarray(half_noise).convert(mode).save(path)
    assert tool.main([str(path), '--img-size', '128', '--out-dir', str(tmp_path / 'out')]) == 0
    assert Image.open(tmp_path / 'out/image_patches.png').size == (128, 128)  # padded


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
    assert 'broken.png cannot be read as an image' in errors and 'missing.png does not exist' in errors
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['good_patches.png']


def test_images_of_one_name_get_files_of_their_own(tool, tmp_path, half_noise):
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
        Image.fromarray(half_noise).save(tmp_path / folder / 'image.png')
    tool.main([str(tmp_path / 'a/image.png'), str(tmp_path / 'b/image.png'), '--img-size', '0', '--out-dir',
               str(tmp_path / 'out')])
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['image_patches.png', 'image_patches_2.png']


def test_padding_is_hatched(tool, tmp_path, half_noise):
    Image.fromarray(half_noise).save(tmp_path / 'scene.png')
    tool.main([str(tmp_path / 'scene.png'), '--img-size', '256', '--thresholds', '-1', '--out-dir', str(tmp_path)])
    drawn = np.asarray(Image.open(tmp_path / 'scene_patches.png')).astype(int)
    assert drawn.shape == (256, 256, 3)
    inside = drawn[130:142, 2:14]  # of one base patch in the padding
    assert {tuple(pixel) for pixel in inside.reshape(-1, 3)} == {(222,) * 3, (150,) * 3}
    assert (drawn[2:14, 2:14] == 60).all()


def test_thresholds_and_scorers_side_by_side(tool, tmp_path, half_noise, capsys):
    """Two rows of three patch grids and two heat maps; each panel has the counts of its own setting.

    A mean Laplacian is below 2.
    """
    Image.fromarray(half_noise).save(tmp_path / 'scene.png')
    arguments = [str(tmp_path / 'scene.png'), '--img-size', '0', '--out-dir', str(tmp_path)]
    assert tool.main([*arguments, '--thresholds', '-1', '-1', '--thresholds', '2', '2', '--thresholds', '99', '99',
                      '--scorer', 'entropy', 'laplacian_mean', '--heat-maps']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ['128', '68', '8', '128', '8', '8']
    size = Image.open(tmp_path / 'scene_patches.png').size
    assert size[0] > 5 * 256 and size[1] > 2 * 128
    assert tool.main([*arguments, '--thresholds', '2', '2']) == 0
    assert Image.open(tmp_path / 'scene_patches.png').size == (256, 128)  # alone it needs no label


def test_shares(tool, tmp_path, half_noise, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, half_noise.shape, np.uint8) // np.linspace(
        1, 60, 256, dtype=np.uint8)[:, None]).save(tmp_path / 'scene.png')
    assert tool.main([str(tmp_path / 'scene.png'), '--img-size', '0', '--kept', '0.8', '0.5', '--scorer', 'entropy',
                      'laplacian_mean', '--out-dir', str(tmp_path)]) == 0
    shares = [float(line.rpartition('(')[2].partition('%')[0]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert all(wanted - 6 < found <= wanted for found, wanted in zip(shares, [80, 50] * 2, strict=True)), shares


@pytest.mark.parametrize('config', ['', 'apt_eva02_ti_demo_det', 'apt_eva02_ti_demo_seg'])
def test_folders_and_videos(tool, tmp_path, half_noise, config, capsys):
    (tmp_path / 'photos/below').mkdir(parents=True)
    Image.fromarray(half_noise).save(tmp_path / 'photos/below/a.png')
    writer = cv2.VideoWriter(str(tmp_path / 'film.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 5, (256, 128))
    for shift in range(3):
        writer.write(np.roll(half_noise, 40 * shift, 1))
    writer.release()
    how = ['--config', str(CONFIGS / f'{config}.py')] if config else ['--img-size', '256']
    arguments = [str(tmp_path / 'photos'), str(tmp_path / 'film.avi'), *how, '--out-dir', str(tmp_path / 'out')]
    assert tool.main(arguments) == 0
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['a_patches.png', 'film_patches.mp4']
    film = cv2.VideoCapture(str(tmp_path / 'out/film_patches.mp4'))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and film.get(cv2.CAP_PROP_FPS) == pytest.approx(5)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and f'{tmp_path}/film.avi#2: ' in lines[-1]


@pytest.mark.parametrize(('arguments', 'message'), [
    (['a.png', '--thresholds', '1', '--thresholds', '1', '1'], '--thresholds of 1 and 2 numbers'),
    (['a.png', '--kept', '2'], '--kept 2 is no share'),
    (['a.png', '--config', 'none.py'], 'config none.py (in '),
    (['a.png', '--patch-size', '0'], '--patch-size 0 --img-size 1536: wanted pixels'),
    (['a.png', '--kept', '0.00001', '--img-size', '256'], 'target 1e-05 is out of reach'),
    (['missing.png', '--kept', '0.5'], 'missing.png does not exist'),
    (['dark.png', '--kept', '0.5'], '--kept: nothing of what is given can be read'),
    (['empty'], 'empty holds no image'),
    (['text.jpg'], 'text.jpg cannot be read as an image'),
    (['film.mp4'], 'film.mp4 cannot be read as a video'),
    (['text.jpg', '--config', str(CONFIG)], 'text.jpg cannot be read'),
])
def test_bad_input_is_one_line(tool, arguments, message, tmp_path, half_noise, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    for name in ('text.jpg', 'film.mp4'):
        (tmp_path / name).write_text('no picture')
    Image.fromarray(half_noise).save(tmp_path / 'a.png')
    Image.fromarray(np.full((40, 60), 900, np.uint16)).save(tmp_path / 'dark.png')
    try:
        status = tool.main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    errors = [line for line in capsys.readouterr().err.splitlines() if ': ' in line and not line.startswith('usage')]
    assert status == 2 and len(errors) == 1 and message in errors[0], errors
