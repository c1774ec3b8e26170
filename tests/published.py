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
    sys.path.append(str(FOLDER))
    try:
        _import_torchvision()
        library = pytest.importorskip(name)
        if find_spec('transformers') is not None:  # it asks once what there is
            checks = importlib.import_module('transformers.utils.import_utils')
            for check in ('is_torchvision_available', 'is_torchvision_v2_available', 'is_timm_available'):
                getattr(checks, check, bool)()
        return library
    finally:
        sys.path.remove(str(FOLDER))  # processes that a test starts would see it too, and mmengine stop at torchvision


def _import_torchvision() -> None:
    if 'torchvision' not in sys.modules and find_spec('torchvision') is not None:
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
