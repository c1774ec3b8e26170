"""Numbers on command lines are checked where they are read."""
import argparse
import re
from pathlib import Path

import pytest

from apt_dense.command_line import at_least, between, device, share, target
from tests.locations import ROOT

# Counts that a program checks by a rule of its own, and numbers that may be any.
OWN_RULES = {'--local_rank', '--port', '--draw', '--num-images', '--max-tokens', '--calibration-images',
             '--time-images', '--rounds', '--time-batches', '--num-draws', '--img-size', '--patch-size', '--batch-size',
             '--num-train', '--num-val', '--size'}


@pytest.mark.parametrize('text', ['-1', '0', '1.5', 'two', ''])
def test_what_is_no_such_number(text, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument('--rounds', type=at_least(1))
    with pytest.raises(SystemExit):
        parser.parse_args(['--rounds', text])
    assert f'argument --rounds: got {text}, wanted a whole number from 1 on' in capsys.readouterr().err
    assert parser.parse_args(['--rounds', '1']).rounds == 1


@pytest.mark.parametrize(('kind', 'text', 'said'), [
    (between(0, 1), '7', 'wanted a number from 0 to 1'), (between(0, 1), 'nan', 'wanted a number from 0 to 1'),
    (between(0), '-1', 'wanted a number from 0 on'), (between(0), 'inf', 'wanted a number from 0 on'),
    (share, '0', 'wanted a share above 0, up to 1'), (share, 'nan', 'wanted a share'), (share, '1.5', 'wanted a share'),
    (share, 'half', 'wanted a share'), (device, 'gpu', 'wanted cpu, cuda or cuda:NUMBER'),
    (target, '/proc/no/a.json', r'the folder of the file /proc/no/a\.json, /proc/no takes no files'),
    (target, '/tmp', 'the file /tmp is a folder'), (device, 'cuda:x', 'wanted cpu, cuda or')])
def test_numbers_and_devices(kind, text, said, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument('--it', type=kind)
    with pytest.raises(SystemExit):
        parser.parse_args([f'--it={text}'])
    assert re.search(f'argument --it: (got {text}, )?{said}', capsys.readouterr().err)
    assert parser.parse_args(['--it', 'cpu' if kind is device else '1']).it in ('cpu', 1.0, Path('1'))


def test_no_program_takes_any_number_for_a_count():
    paths = [path for folder in ('tools', 'apt_dense') for path in (ROOT / folder).rglob('*.py')]
    found = {match[1] for path in paths for line in path.read_text().splitlines() if 'choices=' not in line
             for match in re.finditer(r"add_argument\('(--[\w-]+)'.*type=int\b", line)}
    assert found <= OWN_RULES
