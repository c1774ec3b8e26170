"""Reading checkpoint files: whatever entry holds the weights, and no code is run."""
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from apt_dense.core.checkpoint_files import WRAPPERS, load_official

pytestmark = pytest.mark.own_device  # files are read and written on a CPU


@pytest.fixture
def state() -> dict:
    return {'backbone.net.pos_embed': torch.randn(1, 5, 8), 'backbone.net.blocks.0.norm1.weight': torch.randn(8)}


@pytest.mark.parametrize('wrapper', [*WRAPPERS, ''])
def test_wrappers(tmp_path, state, wrapper):
    torch.save({wrapper: state, 'iteration': 7} if wrapper else state, tmp_path / 'file.pth')
    loaded, entry, others = load_official(tmp_path / 'file.pth')
    assert (entry, others) == (wrapper, ['iteration'] if wrapper else [])
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)


def test_one_of_two_entries(tmp_path, state):
    average = {name: value + 1 for name, value in state.items()}
    torch.save({'model': state, 'model_ema': average}, tmp_path / 'file.pth')
    name = 'backbone.net.pos_embed'
    assert torch.equal(load_official(tmp_path / 'file.pth')[0][name], state[name])
    assert torch.equal(load_official(tmp_path / 'file.pth', 'model_ema')[0][name], average[name])
    with pytest.raises(ValueError, match=r"no entry 'ema' that holds a state dict: it has model, model_ema"):
        load_official(tmp_path / 'file.pth', 'ema')


def test_old_format_and_safetensors(tmp_path, state):
    torch.save({'module': state}, tmp_path / 'old.pt', _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / 'file.safetensors')
    for name in ('old.pt', 'file.safetensors'):
        loaded = load_official(tmp_path / name)[0]
        assert all(torch.equal(loaded[key], state[key]) for key in state), name


def test_a_missing_safetensors_names_its_extra(tmp_path, state, monkeypatch):
    save_file(state, tmp_path / 'file.safetensors')
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(ImportError, match=r"file\.safetensors needs the package safetensors: pip install safetensors, "
                                          r"or pip install -e '\.\[tools\]' .* pip install 'apt-dense\[tools\]'$"):
        load_official(tmp_path / 'file.safetensors')


class Code:

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize('zipped', [True, False])
def test_a_file_with_code_is_refused_and_not_run(tmp_path, state, zipped):
    torch.save({'model': state, 'code': Code(tmp_path / 'ran')}, tmp_path / 'file.pth',
               _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r'holds more than plain data, and is not loaded|posix\.mkdir'):
        load_official(tmp_path / 'file.pth')
    assert not (tmp_path / 'ran').exists()


def test_broken_files(tmp_path):
    (tmp_path / 'text.pth').write_text('not a checkpoint')
    (tmp_path / 'bad.safetensors').write_text('not a checkpoint')
    (tmp_path / 'list.pth').write_bytes(pickle.dumps([1]))
    torch.save([1, 2], tmp_path / 'numbers.pth')
    torch.save({'model': {'a': 1}}, tmp_path / 'no_tensors.pth')
    whole = tmp_path / 'whole.pth'
    torch.save({'model': {'a': torch.zeros(10_000)}}, whole)
    (tmp_path / 'cut.pth').write_bytes(whole.read_bytes()[:20_000])
    broken = 'is damaged|cannot be read as a checkpoint'
    for name, message in (('text.pth', broken), ('list.pth', broken), ('cut.pth', broken),
                          ('bad.safetensors', 'cannot be read as safetensors'), ('none.pth', 'does not exist'),
                          ('numbers.pth', 'holds a list, wanted a dict'),
                          ('no_tensors.pth', 'model is no state dict: a')):
        with pytest.raises(ValueError, match=message):
            load_official(tmp_path / name)


@pytest.mark.parametrize('content', [b'hello', b'', b'\x80\x02', b'<html>404: Not Found</html>', b'version https://git-lfs',
                                     b'\x00' * 100, bytes(range(256)) * 4, b'ab' * 50])
def test_files_that_are_something_else(content, tmp_path):
    """The reader of pickles fails in as many ways as there are bytes."""
    (tmp_path / 'other.pth').write_bytes(content)
    with pytest.raises(ValueError, match=r'other\.pth (is damaged|cannot be read as a checkpoint|holds)'):
        load_official(tmp_path / 'other.pth')


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
@pytest.mark.parametrize(('content', 'said'), [
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:1\n', 'is the pointer that Git LFS keeps.*lfs pull'),
    (b'<!DOCTYPE html><html>', 'it is a web page: the download was refused'), (b'', 'it is empty'),
    (b'{"error": "Access denied"}', 'it is a text, perhaps the answer to a download')])
def test_what_a_download_may_leave(content, said, suffix, tmp_path):
    (tmp_path / f'other.{suffix}').write_bytes(content)
    with pytest.raises(ValueError, match=rf'other\.{suffix} cannot be read as .*{said}'):
        load_official(tmp_path / f'other.{suffix}')


def test_safetensors_that_were_cut(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    path = tmp_path / 'cut.safetensors'
    safetensors.save_file({'a': torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r'cut\.safetensors cannot be read as safetensors: it is damaged, or its end '
                                         r'is missing \(.*\)\. Copy or download it again'):
        load_official(path)


def test_a_program(tmp_path, recwarn):
    """OpenAI's files of CLIP are such; torch would say how to run them."""
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / 'clip.pt')
    recwarn.clear()
    with pytest.raises(ValueError, match=r'clip\.pt is a TorchScript program, which is not run\. Give a file of its '
                                         r'state dict$'):
        load_official(tmp_path / 'clip.pt')
    assert not recwarn.list
