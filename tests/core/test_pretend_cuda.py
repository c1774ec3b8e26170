"""What a pass launches on a GPU, counted without one: whoever adds a launch, a wait or a copy sees it here."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.locations import ROOT

FOLDER = Path(__file__).parent
COMPILER = shutil.which('g++')
# Launches before the first block, in the largest block and in all (4 blocks, and the gradients in training), under
# bfloat16 autocast: 24 of a block's are casts.  Lower a number that has fallen; raise one only for a reason.
# ('counted' is proportional_attention.  A prefix row's turn is no cell's: one or two launches with a class token.)
MOST = {
    'test dense windows': (11, 41, 176), 'test apt windows': (108, 41, 281),
    'test dense class_token': (19, 41, 191), 'test apt class_token': (125, 41, 298),
    'test counted windows': (112, 47, 309), 'test counted class_token': (129, 47, 326),
    'train counted windows': (131, 49, 680), 'train counted class_token': (147, 49, 701),
    'train dense windows': (23, 43, 486), 'train apt windows': (127, 43, 640),
    'train dense class_token': (30, 43, 507), 'train apt class_token': (143, 43, 661)}
COPIES = {'windows': 2, 'class_token': 3}  # the lengths of the runs


@pytest.fixture(scope='module')
def counts(tmp_path_factory) -> dict:
    if COMPILER is None or torch.version.cuda or sys.platform != 'linux':
        pytest.skip('needs g++, and a CPU build of torch on Linux')
    library, torch_folder = tmp_path_factory.mktemp('pretend') / 'libpretend.so', Path(torch.__file__).parent
    include = torch_folder / 'include'
    subprocess.run([COMPILER, '-O0', '-std=c++20', '-shared', '-fPIC', f'-I{include}',
                    f'-I{include}/torch/csrc/api/include', FOLDER / 'pretend_cuda.cpp', '-o', library,
                    f'-L{torch_folder}/lib', '-lc10', '-ltorch_cpu'], check=True)
    environment = dict(os.environ, LD_PRELOAD=str(library), LD_LIBRARY_PATH=f'{torch_folder}/lib',
                       PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    result = subprocess.run([sys.executable, FOLDER / 'pretend_cuda.py'], env=environment, capture_output=True,
                            text=True)
    assert not result.returncode, result.stderr  # a tensor of a CPU that meets one of a GPU ends the run
    return json.loads(result.stdout)


@pytest.mark.parametrize('name', MOST)
def test_launches(counts, name):
    found = counts[name]
    numbers = found['before_blocks'], found['a_block'], found['total']
    assert all(number <= most for number, most in zip(numbers, MOST[name], strict=True)), numbers


@pytest.mark.parametrize('name', MOST)
def test_the_host_waits_once_and_sends_little(counts, name):
    assert counts[name]['waits'] == 1
    assert counts[name]['copies'] <= COPIES[name.split()[2]]


@pytest.mark.parametrize('name', [name for name in MOST if name.startswith('train')])
def test_every_parameter_has_a_gradient(counts, name):
    assert not counts[name]['no_gradient']
