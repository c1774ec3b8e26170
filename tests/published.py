"""The published libraries that the models are compared with, where they are installed."""
import importlib
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest

from apt_dense.python_torchvision import FOLDER, import_torchvision


def published(name: str) -> ModuleType:
    """A library, or skip the test.

    timm and transformers' SAM 3 import torchvision, whose Python part is all that they need.
    """
    if find_spec('torchvision') is not None or (FOLDER / 'torchvision').is_dir():
        import_torchvision()
    sys.path.append(str(FOLDER))
    try:
        library = pytest.importorskip(name)
        if find_spec('transformers') is not None:  # it asks once what there is
            checks = importlib.import_module('transformers.utils.import_utils')
            for check in ('is_torchvision_available', 'is_torchvision_v2_available', 'is_timm_available'):
                getattr(checks, check, bool)()
        return library
    finally:
        sys.path.remove(str(FOLDER))  # processes that a test starts would see it too, and mmengine stop at torchvision
