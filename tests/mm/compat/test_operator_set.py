"""Which operators mmcv uses, whatever was imported first, and what the others say."""
import importlib
import os
import subprocess
import sys
from types import ModuleType

import mmcv.ops
import pytest
import torch

from apt_dense.mm import compat
from apt_dense.mm.compat import operator_set
from tests.locations import ROOT
from tests.mm.compat import operator_sets as sets

WITHOUT_COMPILED = """
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == 'mmcv._ext':
            raise ModuleNotFoundError("No module named 'mmcv._ext'", name=name)
sys.meta_path.insert(0, Hide())
try:
    import mmcv.ops
except ModuleNotFoundError as error:
    print(error)
import apt_dense.mm.det, mmcv.ops.nms, mmcv.ops.roi_align, mmdet.apis
from importlib.util import find_spec
assert find_spec('mmcv._ext').name == 'mmcv._ext'
print([type(sys.modules[f'mmcv.ops.{name}'].ext_module).__name__ for name in ('nms', 'roi_align')])
"""


def test_plain_operators_where_there_are_no_others():
    """Until apt_dense.mm is imported mmcv complains, in the words of docs/get_started.md; then all is there."""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'APT_DENSE_OPS': 'plain'}
    done = subprocess.run([sys.executable, '-c', WITHOUT_COMPILED], capture_output=True, text=True, timeout=300,
                          env=environment)
    assert done.returncode == 0, done.stderr
    complaint, *_, used = done.stdout.splitlines()  # between them the forks say what they lack
    assert used == "['PlainOperators', 'PlainOperators']"
    assert f'| {complaint} |' in (ROOT / 'docs/get_started.md').read_text()


def provide(monkeypatch: pytest.MonkeyPatch, choice: str | None, extension: object) -> list:
    """What the modules of mmcv.ops use after provide_operators has run, where mmcv._ext was ``extension``."""
    monkeypatch.delenv('APT_DENSE_OPS', raising=False)
    if choice is not None:
        monkeypatch.setenv('APT_DENSE_OPS', choice)
    monkeypatch.setitem(sys.modules, 'mmcv._ext', extension)
    modules = [importlib.import_module(f'mmcv.ops.{name}') for name in ('nms', 'roi_align')]
    for module in modules:
        monkeypatch.setattr(module, 'ext_module', extension)
    operator_set.provide_operators()
    return [module.ext_module for module in modules]


def test_mmcvs_operators_may_be_imported_first(monkeypatch):
    compiled = ModuleType('mmcv._ext')
    used = provide(monkeypatch, None, compiled)
    assert all(isinstance(module, operator_set.PlainOperators) for module in used)
    assert used[0].compiled is compiled and sys.modules['mmcv._ext'] is used[0] is used[1]
    operator_set.provide_operators()
    assert sys.modules['mmcv._ext'] is used[0]


def test_compiled_operators_are_used_when_asked_for(monkeypatch):
    compiled = ModuleType('mmcv._ext')
    assert provide(monkeypatch, 'compiled', compiled) == [compiled, compiled]
    assert sys.modules['mmcv._ext'] is compiled and compat.plain_operators() is None


def test_compiled_operators_that_are_not_there(monkeypatch):
    with pytest.raises(ImportError, match=r'^APT_DENSE_OPS=compiled, but mmcv has none that load \(.*\): unset it, or '
                                          'compile them: MMCV=compiled make setup$'):
        provide(monkeypatch, 'compiled', None)


def test_no_such_choice(monkeypatch):
    with pytest.raises(ValueError, match=r"^APT_DENSE_OPS='fast': choose one of \('plain', 'compiled'\)$"):
        provide(monkeypatch, 'fast', None)


def test_every_other_operator_refuses_to_run(monkeypatch):
    provide(monkeypatch, 'plain', None)
    plain = compat.plain_operators()
    assert plain.get_compiling_cuda_version() == 'not available'
    assert not hasattr(plain, '__file__')
    with pytest.raises(NotImplementedError, match="^the operator nms_rotated is one of mmcv's compiled ones: compile "
                       r'mmcv \(MMCV=compiled make setup\) and set APT_DENSE_OPS=compiled. Here'):
        plain.nms_rotated(torch.zeros(1, 5), multi_label=False)


def test_other_compiled_operators_are_found_behind_the_plain_ones(monkeypatch):
    if sets.compiled_operators() is None:
        pytest.skip('mmcv has no compiled operators')
    sets.use_operators('plain', monkeypatch)
    boxes = torch.tensor([[5.0, 5, 4, 2, 0.1], [5, 5, 4, 2, 0.2], [15, 5, 4, 2, 0]])
    assert mmcv.ops.nms_rotated(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)[1].tolist() == [0, 2]


def test_pooling_of_maxima_refuses_to_run(monkeypatch):
    sets.use_operators('plain', monkeypatch)
    layer = mmcv.ops.RoIAlign(2, pool_mode='max')
    with pytest.raises(NotImplementedError, match="roi_align with pool_mode='max' is one of mmcv's compiled ones"):
        layer(torch.zeros(1, 2, 5, 6), torch.tensor([[0, 1, 1, 3, 3.0]]))


class TorchvisionOnCPU:
    """Its two operators with their arguments, by the plain ones."""

    def __init__(self):
        self.called = []

    def nms(self, boxes, scores, iou_threshold):
        self.called.append('nms')
        return operator_set.plain_nms.nms(boxes.cpu(), scores.cpu(), iou_threshold)

    def roi_align(self, maps, rois, spatial_scale, height, width, sampling_ratio, aligned):
        self.called.append('roi_align')
        return operator_set.plain_roi_align.roi_align(maps, rois, (height, width), spatial_scale, sampling_ratio,
                                                      aligned)


class OnGPU(torch.Tensor):
    """A CPU's tensor that says it is elsewhere."""

    @property
    def device(self):
        return torch.device('cuda')


def test_a_gpu_takes_those_of_torchvision(monkeypatch):
    """... whose NMS knows no offset."""
    torchvision = TorchvisionOnCPU()
    monkeypatch.setattr(operator_set, 'gpu_operators', lambda: torchvision)
    plain = operator_set.PlainOperators('mmcv has none')
    name, boxes, scores = list(sets.box_cases())[-2]
    for offset in (0, 1):
        kept = operator_set.plain_nms.nms(boxes, scores, 0.5, offset)
        assert plain.nms(boxes.as_subclass(OnGPU), scores, 0.5, offset).tolist() == kept.tolist()
    _, maps, rois, settings, _ = next(sets.roi_align_cases())
    pooled = plain.pool(maps.as_subclass(OnGPU), rois, (3, 2), 0.25, 2, True)
    assert pooled.as_subclass(torch.Tensor).equal(plain.pool(maps, rois, (3, 2), 0.25, 2, True))
    assert torchvision.called == ['nms', 'nms', 'roi_align']


@pytest.fixture
def forget_gpu_operators():
    operator_set.gpu_operators.cache_clear()
    yield
    operator_set.gpu_operators.cache_clear()


def test_a_gpu_without_torchvision(forget_gpu_operators, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    sets.use_operators('plain', monkeypatch)
    with pytest.raises(ImportError, match='RoIAlign and NMS on a GPU are those of the torchvision that belongs to '
                       r'torch .*, and they do not load \(import of torchvision halted.*\). Install it '
                       r'\(make setup does\), or compile mmcv \(MMCV=compiled make setup\) and set'):
        compat.describe_operators('cuda')


def test_what_the_log_says(monkeypatch):
    sets.use_operators('plain', monkeypatch)
    assert compat.describe_operators('cpu') == 'RoIAlign, NMS and soft-NMS: plain numpy and torch'
    monkeypatch.setattr(operator_set, 'plain_operators', lambda: None)
    monkeypatch.setattr(mmcv.ops, 'get_compiling_cuda_version', lambda: 'not available')
    assert compat.describe_operators('cpu') == (
        "RoIAlign, NMS and soft-NMS: mmcv's compiled operators (APT_DENSE_OPS=compiled)")
    with pytest.raises(ImportError, match="mmcv's operators are compiled for CPUs only: unset it, or"):
        compat.describe_operators('cuda')
