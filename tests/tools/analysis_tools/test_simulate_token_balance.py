"""The simulation of idle ranks, as a command."""

import numpy as np
import pytest
from PIL import Image

from apt_dense.calibration.token_counts import write_token_counts
from tests.locations import CONFIGS, load_tool

CONFIG = str(CONFIGS / 'apt_eva02_ti_demo_seg.py')
tool = load_tool('analysis_tools/simulate_token_balance.py')


def table(printed: str) -> list[tuple[int, int, float, float]]:
    rows = [line.split() for line in printed.splitlines() if line.strip()[:1].isdigit() and len(line.split()) == 4]
    return [(int(batch), int(ranks), float(plain), float(balanced)) for batch, ranks, plain, balanced in rows]


def test_token_counts_of_a_dataset(tmp_path, capsys):
    """Two kinds of images, half and half: a random pair of ranks differs every second time, a balanced one never."""
    counts = {f'{index}.jpg': 300 if index % 2 else 100 for index in range(64)}
    write_token_counts(tmp_path / 'tokens.json', {}, counts)
    arguments = ['--token-counts', str(tmp_path / 'tokens.json'), '--ranks', '2', '4', '--batch-size', '1', '2']
    assert tool.main([*arguments, '--pool-steps', '16', '--out', str(tmp_path / 'plots/idle.png')]) == 0
    printed = capsys.readouterr().out
    assert '200 tokens on average, standard deviation 50 % between images, 0 % between draws of one' in printed
    rows = table(printed)
    assert [row[:2] for row in rows] == [(1, 2), (1, 4), (2, 2), (2, 4)]
    assert rows[0][2] == pytest.approx(100 / 6, abs=2)  # every second time, 1 - 200 / 300
    assert all(balanced < 3 < plain for _, _, plain, balanced in rows)
    assert Image.open(tmp_path / 'plots/idle.png').size[0] > 500


def test_photographs(tmp_path, capsys):
    rng = np.random.default_rng(0)
    noise, flat = rng.integers(0, 255, (200, 300, 3), np.uint8), np.full((300, 200, 3), 90, np.uint8)
    for name, pixels in (('noise.png', noise), ('flat.png', flat)):
        Image.fromarray(pixels).save(tmp_path / name)
    arguments = [str(tmp_path), '--config', CONFIG, '--size', '128', '--num-crops', '24', '--num-draws', '2']
    assert tool.main([*arguments, '--ranks', '2', '--batch-size', '1', '--num-steps', '100',
                      '--out', str(tmp_path / 'idle.png')]) == 0
    (_, ranks, plain, balanced), = table(capsys.readouterr().out)
    assert ranks == 2 and balanced < plain


@pytest.mark.parametrize(('arguments', 'message'), [
    ([], 'give photographs, or --token-counts'), (['x', '--token-counts', 'y'], 'give photographs, or --token-counts'),
    (['x'], 'photographs need a --config'), (['x', '--config', CONFIG, '--num-draws', '1'], 'wanted 2 or more')])
def test_wrong_commands(arguments, message, capsys):
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert message in capsys.readouterr().err


def test_a_missing_file(tmp_path, capsys):
    assert tool.main(['--token-counts', str(tmp_path / 'no.json')]) == 2
    assert 'no.json does not exist' in capsys.readouterr().err
