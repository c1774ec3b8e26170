"""torchvision's transforms and datasets, which are written in Python, also where its compiled part does not load.

PyPI's torchvision is built for CUDA.  Beside a torch for CPUs its library does not load, and its Python part stops
where it describes two operators that are not there.  They are declared here, without being defined; then the Python
part loads.  ``make setup`` puts that torchvision into a folder of its own, because mmengine and mmdetection import any
torchvision that they find, and would stop at it.
"""
import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from torch.library import Library

from apt_dense.extras import from_extra

FOLDER = Path(sys.prefix) / 'oracles'  # see tools/setup_env.sh
SCHEMA = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
_declarations: list[Library] = []  # operators are gone with the object that declares them


def import_torchvision(module: str = 'torchvision') -> ModuleType:
    """torchvision, or one of its modules, such as 'torchvision.transforms.v2'.

    Raises:
        ModuleNotFoundError: naming the extra, where there is none.
    """
    sys.path.append(str(FOLDER))
    try:
        with from_extra('cls'):
            _import_python_part()
            return importlib.import_module(module)
    finally:
        sys.path.remove(str(FOLDER))


def _import_python_part() -> None:
    if 'torchvision' in sys.modules or find_spec('torchvision') is None:
        return
    try:
        importlib.import_module('torchvision')
    except RuntimeError as error:
        if 'torchvision::nms' not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
            del sys.modules[name]
        _declarations.append(Library('torchvision', 'DEF'))
        for operator in ('nms', 'qnms'):
            _declarations[0].define(f'{operator}{SCHEMA}')
        importlib.import_module('torchvision')
