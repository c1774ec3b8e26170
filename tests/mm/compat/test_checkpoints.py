"""Checkpoints load whichever numpy wrote them; one that holds code is refused and not run."""
import os
import pickle
import shutil
import zipfile

import mmengine.runner.checkpoint
import numpy as np
import pytest
import torch
from mmdet.apis import init_detector
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmseg.apis import init_model
from torch import nn

from apt_dense.core.checkpoint_files import read_pickle
from apt_dense.mm import compat
from tests.mm.compat.toys import Toy, train_toy

NUMPY_TYPES = '?bhilqBHILQefd'


class Call:
    """Pickled as a call of ``function``, which may be another Call: an unsafe load makes the call."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced

    def __call__(self):
        """Never called: pickle wants what it is to call to be callable."""


def test_runner_resumes_what_it_saved(tmp_path):
    first = train_toy(tmp_path, max_iters=2)
    second = train_toy(tmp_path, max_iters=4, resume=True, load_from=str(tmp_path / 'iter_2.pth'))
    losses, resumed = (runner.message_hub.get_scalar('train/loss').data[0] for runner in (first, second))
    assert len(losses) == 2 and len(resumed) == 4
    assert (resumed[:2] == losses).all()
    assert second.message_hub.get_scalar('train/loss').statistics('mean', 2) == pytest.approx(resumed[2:].mean())
    assert second.message_hub.get_info('best_score') == 0.25
    assert (second.message_hub.get_info('confusion') == [[0, 1, 2], [3, 4, 5]]).all()
    assert [state['step'].item() for state in second.optim_wrapper.state_dict()['state'].values()] == [4, 4]


@pytest.fixture
def checkpoint():
    """What CheckpointHook writes (a model, its optimiser, a message hub) and every numeric type of numpy."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    hub = MessageHub('checkpoint')
    for loss in (3.0, 2.0, 2.5):
        hub.update_scalar('train/loss', loss)
    hub.update_info('score', np.float64(0.75))
    return {
        'state_dict': model.state_dict(),
        'optimizer': optimizer.state_dict(),
        'message_hub': hub.state_dict(),
        'arrays': {code: np.array([[1, 0, 1]], code) for code in NUMPY_TYPES},
        'scalars': {code: np.dtype(code).type(1) for code in NUMPY_TYPES},
        'meta': {'iter': 3, 'classes': ('ball', 'crate'), 'cfg': 'a = 1'},
    }


def replace_in_pickle(path, old, new):
    """Write ``new`` for ``old`` in the pickle inside a checkpoint."""
    with zipfile.ZipFile(path) as file:
        entries = {entry: file.read(entry) for entry in file.namelist()}
    with zipfile.ZipFile(path, 'w') as file:  # uncompressed, as torch wants it
        for entry, content in entries.items():
            if entry.endswith('data.pkl'):
                assert old in content
                content = content.replace(old, new)
            file.writestr(entry, content)


@pytest.mark.parametrize('module', ['numpy.core.multiarray', 'numpy._core.multiarray'])
def test_checkpoint_loads_whichever_numpy_wrote_it(checkpoint, tmp_path, module):
    path = tmp_path / 'checkpoint.pth'
    torch.save(checkpoint, path)
    replace_in_pickle(path, np.zeros(0).__reduce__()[0].__module__.encode(), module.encode())
    model = nn.Linear(3, 2)
    loaded = load_checkpoint(model, str(path))
    for name, value in checkpoint['state_dict'].items():
        assert torch.equal(model.state_dict()[name], value), name
    history = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert [history.statistics(name) for name in ('min', 'max', 'mean', 'current')] == [2.0, 3.0, 2.5, 2.5]
    assert loaded['message_hub']['runtime_info']['score'] == 0.75
    for code in NUMPY_TYPES:
        assert loaded['arrays'][code].dtype == loaded['scalars'][code].dtype == np.dtype(code)
        assert loaded['arrays'][code].tolist() == [[1, 0, 1]] and loaded['scalars'][code] == 1
    mean = loaded['optimizer']['state'][0]['exp_avg']
    assert mean.abs().min() > 0 and torch.equal(mean, checkpoint['optimizer']['state'][0]['exp_avg'])
    assert loaded['meta'] == checkpoint['meta']


def call_through_getattr(function, *args):
    """A way to every builtin function that names nothing but getattr and HistoryBuffer."""
    namespace = Call(getattr, HistoryBuffer.mean, '__globals__')
    functions = Call(Call(getattr, namespace, 'get'), '__builtins__')
    return Call(Call(Call(getattr, functions, 'get'), function), *args)


ATTACKS = {
    'system': (lambda marker: Call(os.system, f'touch {marker}'), r'GLOBAL posix\.system '),
    'eval': (lambda marker: Call(eval, f'open({str(marker)!r}, "w").close()'), r'GLOBAL (\w+\.)?eval '),
    'getattr': (lambda marker: call_through_getattr('open', str(marker), 'w'),
                r"getattr\(.*'__globals__'\) is not allowed in a checkpoint"),
}


@pytest.fixture(params=ATTACKS)
def attack(request, tmp_path):
    """(checkpoint with code inside, the file that the code makes, the text of its refusal)."""
    path, marker = tmp_path / 'attack.pth', tmp_path / 'marker'
    make, refusal = ATTACKS[request.param]
    torch.save({'state_dict': {'weight': torch.ones(2)}, 'meta': make(marker)}, path)
    torch.load(path, weights_only=False)
    assert marker.exists()  # it works where nothing stops it
    marker.unlink()
    return str(path), marker, refusal


def test_code_in_a_checkpoint_is_refused_and_not_run(attack):
    path, marker, refusal = attack
    for load in (CheckpointLoader.load_checkpoint, torch.load):
        with pytest.raises(pickle.UnpicklingError, match=refusal):
            load(path, map_location='cpu')
    assert not marker.exists()


@pytest.mark.parametrize(('owner', 'name'), [
    (HistoryBuffer, '__init__'), (HistoryBuffer, 'register_statistics'), (np.ndarray, 'mean'), (np.dtype, 'type')])
def test_a_checkpoint_reaches_the_four_statistics_only(tmp_path, owner, name):
    torch.save({'allowed': HistoryBuffer.max, 'other': Call(getattr, owner, name)}, tmp_path / 'checkpoint.pth')
    with pytest.raises(pickle.UnpicklingError, match=rf"getattr\(.*'{name}'\) is not allowed in a checkpoint"):
        torch.load(tmp_path / 'checkpoint.pth')


def load_from_hub(path, monkeypatch, tmp_path):
    """Through torch.hub, which loads anything; a file that is in its cache is not fetched."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'hub/checkpoints').mkdir(parents=True)
    shutil.copy(path, tmp_path / 'hub/checkpoints/some.pth')
    return CheckpointLoader.load_checkpoint('https://host/some.pth', map_location='cpu')


def load_with_fallback(path, monkeypatch, tmp_path):
    """As onedl-mmengine, which tries a second time without the check."""

    def fall_back(filename, map_location):
        try:
            return torch.load(filename, map_location=map_location)
        except pickle.UnpicklingError:
            return torch.load(filename, map_location=map_location, weights_only=False)

    monkeypatch.setitem(CheckpointLoader._schemes, '', fall_back)
    return CheckpointLoader.load_checkpoint(path)


def load_with_torch_of_old(path, monkeypatch, tmp_path):
    """As on torch 2.5, whose default is to run what a file says; a user may set the same today."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    return CheckpointLoader.load_checkpoint(path)


def load_detector(path, monkeypatch, tmp_path):
    return init_detector(Config(dict(model=dict(type='CompatModel', backbone=dict()))), path, palette='coco',
                         device='cpu')


def load_segmentor(path, monkeypatch, tmp_path):
    return init_model(Config(dict(model=dict(type='CompatModel'))), path, device='cpu')


@pytest.mark.parametrize('load', [
    load_from_hub, load_with_fallback, load_with_torch_of_old, load_detector, load_segmentor])
def test_no_way_of_loading_runs_code(load, attack, monkeypatch, tmp_path):
    path, marker, refusal = attack
    MODELS.register_module(name='CompatModel', module=lambda **settings: Toy(), force=True)
    with pytest.raises(pickle.UnpicklingError, match=refusal):
        load(path, monkeypatch, tmp_path / 'hub')
    assert not marker.exists()
    torch.save({'state_dict': Toy().state_dict(), 'meta': {'dataset_meta': {'classes': ('a',)}}}, path)
    assert load(path, monkeypatch, tmp_path / 'good')  # the same way takes a good one
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def test_a_loader_that_allows_getattr_is_replaced(attack, monkeypatch, tmp_path):
    """As onedl-mmengine's, which also takes HistoryBuffer from torch's list again."""

    def load_with_own_list(file, map_location=None, weights_only=None):
        with torch.serialization.safe_globals([getattr, HistoryBuffer]):
            return torch.load(file, map_location=map_location, weights_only=True)

    path, marker, refusal = attack
    monkeypatch.setattr(mmengine.runner.checkpoint, '_safe_torch_load', load_with_own_list, raising=False)
    compat.apply()
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(pickle.UnpicklingError, match=refusal):
        mmengine.runner.checkpoint._safe_torch_load(path, map_location='cpu')
    assert not marker.exists()
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize('read', [read_pickle, CheckpointLoader.load_checkpoint])
def test_a_list_that_a_library_has_shortened_is_made_whole(checkpoint, read, tmp_path):
    """As transformers' Trainer leaves it when it has resumed."""
    path = tmp_path / 'iter_3.pth'
    torch.save(checkpoint, path)
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([HistoryBuffer, np.ndarray, np.dtype, np.dtypes.UInt32DType]):
        pass
    assert set(torch.serialization.get_safe_globals()) < before
    assert read(path if read is read_pickle else str(path))['meta']['iter'] == 3
    assert set(torch.serialization.get_safe_globals()) == before
