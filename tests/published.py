"""The published libraries that the models are compared with, where they are installed."""
import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

# Here `make setup` puts timm and torchvision, of which only tests know, see tools/setup_env.sh.
FOLDER = Path(sys.prefix) / 'oracles'
SCHEMA = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
_libraries = []  # definitions are gone with their library


def published(name: str) -> ModuleType:
    """A library, or skip the test.

    timm and transformers' SAM 3 import torchvision.  PyPI's is built for CUDA: beside a torch for CPUs its compiled
    part does not load, and its Python part stops where it describes two operators that are not there.  They are
    declared here, without being defined; then the Python part loads, which is all that these need.
    """
    if FOLDER.is_dir() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    if find_spec('torchvision') is not None:
        try:
            importlib.import_module('torchvision')
        except RuntimeError as error:
            if 'torchvision::nms' not in str(error):
                raise
            for module in [module for module in sys.modules if module.partition('.')[0] == 'torchvision']:
                del sys.modules[module]
            _libraries.append(torch.library.Library('torchvision', 'DEF'))
            for operator in ('nms', 'qnms'):
                _libraries[0].define(f'{operator}{SCHEMA}')
            importlib.import_module('torchvision')
    return pytest.importorskip(name)
