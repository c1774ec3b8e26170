"""The calibration tool on folders of photographs: what it prints, writes and refuses."""
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apt_dense.calibration.token_counts import read_token_counts
from tests.locations import load_tool


@pytest.fixture(scope='module')
def tool():
    return load_tool('analysis_tools/calibrate_thresholds.py')


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> Path:
    """Three images, left part constant, of 128 x 256, 128 x 192 and 128 x 128 px, and a text file."""
    folder = tmp_path_factory.mktemp('photos')
    rng = np.random.default_rng(0)
    (folder / 'below').mkdir()
    for name, width, constant in (('a.png', 256, 64), ('below/b.PNG', 192, 96), ('c.png', 128, 128)):
        image = rng.integers(0, 256, (128, width, 3), dtype=np.uint8)
        image[:, :constant] = 60
        Image.fromarray(image).save(folder / name, format='PNG')
    (folder / 'notes.txt').write_text('no image')
    return folder


@pytest.fixture
def run(tool, tmp_path, capsys):
    """run(arguments...) -> (exit status, output, errors), with the outputs in tmp_path."""

    def call(*arguments) -> tuple[int, str, str]:
        status = tool.main([*map(str, arguments), '--num-workers', '0', '--out-dir', str(tmp_path / 'out')])
        return status, *capsys.readouterr()

    return call


def table(output: str) -> dict[str, list[float]]:
    """Name of the row -> mean, 5 %, 50 %, 95 %, area."""
    rows = {}
    for line in output.splitlines():
        name, numbers = line[:8].strip(), line[8:].split()
        if name in ('all', '16 px', '32 px', '64 px'):
            rows[name] = [float(number) for number in numbers]
    return rows


def test_distribution_of_cropped_photographs(run, photos):
    """Of the squares in the middle of 64 cells, none, 4 of 8 columns and all are constant."""
    status, output, _ = run(photos, '--size', 128, '--thresholds', 1, 1)
    assert status == 0
    assert '3 images, 3 inputs; tokens of the largest input: 64 of 64' in output
    rows = table(output)
    # 64, 32 + 2 of 64 px, and 4 of 64 px
    assert rows['all'] == pytest.approx([100 * (64 + 34 + 4) / 192, *np.percentile([100, 53.125, 6.25], [5, 50, 95]),
                                         100], abs=0.051)
    assert rows['16 px'][0] == rows['16 px'][4] == 50
    assert rows['32 px'] == [0, 0, 0, 0, 0]
    assert rows['64 px'] == pytest.approx([100 * 6 / 192, *np.percentile([0, 3.125, 6.25], [5, 50, 95]), 50], abs=0.051)


def test_padded_photographs(run, photos):
    """256 x 128 px in a square of 256: the lower half is padding; the photograph's first quarter is constant."""
    status, output, _ = run(photos / 'a.png', '--size', 256, '--fit', 'pad', '--thresholds', 1, 1)
    assert status == 0
    assert table(output)['all'][0] == pytest.approx(100 * (96 + 2 + 8) / 256, abs=0.051)


def test_found_thresholds_plot_and_snippet(run, photos, tmp_path):
    status, output, _ = run(photos, '--size', 128, '--kept', 0.4, '--num-scales', 3)
    assert status == 0
    assert 39 < table(output)['all'][0] <= 40.05
    content = {}
    exec((tmp_path / 'out/thresholds.py').read_text(), content)
    backbone = content['model']['backbone']
    assert backbone['num_scales'] == 3
    assert f'thresholds={backbone["thresholds"]}' in output
    assert backbone['thresholds'][1] == pytest.approx(0.8 * backbone['thresholds'][0], rel=1e-3)
    assert '# all' in (tmp_path / 'out/thresholds.py').read_text()
    picture = np.asarray(Image.open(tmp_path / 'out/thresholds.png').convert('RGB'))
    assert picture.shape[0] > 300 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    # The same thresholds, given: the same table.
    _, again, _ = run(photos, '--size', 128, '--thresholds', *backbone['thresholds'])
    assert table(again) == table(output)


@pytest.mark.parametrize('how', [('--ratio', '1'), ('--quantile',)])
def test_a_token_budget_for_the_largest_input(run, photos, how):
    status, output, _ = run(photos, '--size', 128, '--max-tokens', 40, *how)
    assert status == 0
    largest = int(output.split('largest input: ')[1].split(' of ')[0])
    assert 30 < largest <= 40


def test_workers_give_the_same(tool, photos, tmp_path, capsys):
    outputs = []
    for workers in ('0', '2'):
        tool.main([str(photos), '--size', '128', '--kept', '0.5', '--num-workers', workers, '--out-dir',
                   str(tmp_path), '--save-tokens', str(tmp_path / f'{workers}.json')])
        outputs.append(capsys.readouterr().out.split('->')[0])
    assert outputs[0] == outputs[1]
    first, second = (json.loads((tmp_path / f'{workers}.json').read_text()) for workers in '02')
    assert first == second and list(first['tokens']) == list(second['tokens'])


def test_a_broken_image_is_named_and_the_rest_goes_on(run, photos, tmp_path):
    (tmp_path / 'broken.png').write_bytes((photos / 'a.png').read_bytes()[:5000])
    status, output, errors = run(tmp_path / 'broken.png', photos, '--size', 128, '--thresholds', 1, 1)
    assert status == 1
    assert 'broken.png cannot be read as an image' in errors and '1 images left out' in errors
    assert '3 images, 3 inputs' in output
    assert run(tmp_path / 'broken.png', '--size', 128, '--kept', 0.5)[0] == 2


def test_saved_tokens(run, photos, tmp_path):
    file = tmp_path / 'cache/tokens.json'
    assert run(photos, '--size', 128, '--thresholds', 1, 1, '--save-tokens', file)[0] == 0
    tokens = read_token_counts(file, dict(size=128, fit='crop', resampling='opencv', scorer='entropy', num_scales=3,
                                          patch_size=16, thresholds=(1.0, 1.0)))
    assert tokens == {str(photos / 'a.png'): 64, str(photos / 'below/b.PNG'): 34, str(photos / 'c.png'): 4}
    assert [path.name for path in file.parent.iterdir()] == ['tokens.json']
    with pytest.raises(ValueError, match=r'other settings: thresholds was \[1.0, 1.0\], is \[2.0, 1.0\]'):
        read_token_counts(file, dict(size=128, fit='crop', resampling='opencv', scorer='entropy', num_scales=3,
                                     patch_size=16, thresholds=(2.0, 1.0)))
    (tmp_path / 'other.json').write_text('[]')
    with pytest.raises(ValueError, match='no cache of token counts'):
        read_token_counts(tmp_path / 'other.json', {})


def test_some_of_the_images(run, photos):
    assert '2 images, 2 inputs' in run(photos, '--size', 128, '--thresholds', 1, 1, '--num-images', 2)[1]


@pytest.mark.parametrize('arguments, message', [
    (['nowhere', '--size', 128, '--kept', 0.5], 'nowhere does not exist'),
    (['.', '--size', 128, '--kept', 0.5], 'holds no image'),
    (['PHOTOS', '--size', 128, '--kept', 0.99], 'is possible'),
    (['PHOTOS', '--size', 128, '--max-tokens', 1], 'is possible'),
])
def test_what_cannot_be_done(run, photos, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, errors = run(*(photos if argument == 'PHOTOS' else argument for argument in arguments))
    assert status == 2 and message in errors
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('arguments, message', [
    (['--kept', '0.5'], 'give images, or --config'),
    (['a.png', '--config', 'b.py', '--kept', '0.5'], 'give images, or --config'),
    (['a.png', '--kept', '0.5'], 'need a --size'),
    (['--config', 'b.py', '--size', '512', '--kept', '0.5'], '--size has no meaning with --config, which has its own'),
    (['--config', 'b.py', '--scorer', 'laplacian_max', '--kept', '0.5'], '--scorer has no meaning with --config'),
    (['a.png', '--size', '512', '--kept', '0.5', '--split', 'train'], '--split has no meaning with image files'),
    (['a.png', '--size', '512', '--thresholds', '1', '--quantile'], '--quantile has no meaning with --thresholds'),
    (['a.png', '--size', '96', '--kept', '0.5'], '--size 96 is not a multiple of the largest patch, 64 px: use 128'),
    (['a.png', '--size', '-16', '--kept', '0.5'], '--size -16 is not a multiple of the largest patch, 64 px: use 64'),
    (['a.png', '--size', '512'], 'is required'),
    (['a.png', '--size', '512', '--thresholds', '1', '--num-scales', '4'], 'has 3 thresholds, got 1'),
    (['a.png', '--size', '512', '--kept', '0.5', '--num-images', '2', '--save-tokens', 'a.json'], 'needs every image'),
])
def test_arguments_that_do_not_go_together(tool, capsys, arguments, message):
    with pytest.raises(SystemExit):
        tool.parse_args(arguments)
    assert message in capsys.readouterr().err
