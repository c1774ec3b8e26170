"""Checkpoint files: read safely, whatever wrote them."""
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from apt_dense.extras import install_command

ZIP = b'PK\x03\x04'  # what a file of torch.save begins with
PICKLE = b'\x80'  # and one of its old format
# What else files are that were to be checkpoints: (their beginning, what they are and what to do).
OTHERS = (
    (b'version https://git-lfs', 'it is the pointer that Git LFS keeps in place of the file. Get the file itself: git '
     'lfs pull in its repository, or download it again'),
    (b'<', 'it is a web page: the download was refused, or the address is that of a page about the file. Download it '
     'again and look at what comes'),
    (b'{', 'it is a text, perhaps the answer to a download that was refused. Download it again'))
USE_AS_IT_IS = ("in this project's format already. Use it as it is: apt_dense.load(FILE), tools/test.py CONFIG FILE, "
                'or --cfg-options load_from=FILE to train on')
WRAPPERS = ('model', 'model_ema', 'state_dict', 'module')
_allowed: set[Callable] = set()


def load_official(path: str | Path, wrapper: str | None = None) -> tuple[dict[str, Tensor], str, list[str]]:
    """Read a .pth, .pt or .safetensors file without running any code in it.

    Args:
        path: the file.  Tensors of recent .pth files stay on disk until they are used.
        wrapper: the entry that holds the state dict, such as 'model_ema'; by default the first that is there of
            'model', 'model_ema', 'state_dict', 'module', or the file itself if it is a state dict.

    Returns:
        The state dict, the name of its entry ('' if there is none), and the names of the other entries.

    Raises:
        ValueError: if the file is missing, damaged, holds more than plain data, or has no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'{path} {"is a folder: give a file" if path.is_dir() else "does not exist"}')
    content = _read_safetensors(path) if path.suffix == '.safetensors' else read_pickle(path)
    if not isinstance(content, Mapping):
        raise ValueError(f'{path} holds a {type(content).__name__}, wanted a dict of tensors')
    if wrapper is None:
        wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), '')
    elif not isinstance(content.get(wrapper), Mapping):
        raise ValueError(f'{path} has no entry {wrapper!r} that holds a state dict: it has {listed(content)}')
    state = content[wrapper] if wrapper else content
    others = [str(name) for name in content if name != wrapper] if wrapper else []
    bad = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if bad or not state:
        raise ValueError(f'{path}: {wrapper or "the file"} is no state dict: {listed(bad) or "it is empty"}. Name the '
                         f'entry that is one; the file has {listed(content)}')
    return dict(state), wrapper, others


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f'{path.name} needs the package safetensors: pip install safetensors, or '
                          f'{install_command("tools")}') from error
    try:
        return load_file(path)
    except SafetensorError as error:
        reason = _other(path) or f'it is damaged, or its end is missing ({error}). Copy or download it again'
        raise ValueError(f'{path} cannot be read as safetensors: {reason}') from error


def allow_globals(functions: Iterable[Callable]) -> None:
    """Let every .pth and .pt file name these classes and functions, beside torch's own list.

    torch has one list for the process, and a library's ``with torch.serialization.safe_globals(...)`` (transformers'
    Trainer has one, with numpy's types) takes from it at its end what others had put there before: ``read_pickle`` puts
    them back first.
    """
    _allowed.update(functions)
    restore_globals()


def restore_globals() -> None:
    """Put what ``allow_globals`` was given on torch's list again."""
    torch.serialization.add_safe_globals(list(_allowed))


def read_pickle(path: Path) -> object:
    """The content of a .pth or .pt file; tensors of recent files stay on disk until they are used.

    Raises:
        ValueError: if it is damaged, or holds more than plain data.
    """
    if _is_program(path):
        raise ValueError(f'{path} is a TorchScript program, which is not run. Give a file of its state dict')
    if _allowed:
        restore_globals()
    try:
        return torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        names = _unsafe_names(path)
        if any(name.startswith('mmengine.') for name in names):
            raise ValueError(f'{path} is a checkpoint of a training, with the log of it, and nothing to convert. If '
                             f'this project has written it, it is {USE_AS_IT_IS}') from error
        if names:
            raise ValueError(f'{path} holds more than plain data and is not loaded, because that could run code: '
                             f'{listed(names)}. Ask its author for a file with tensors only') from error
        raise ValueError(f'{path} cannot be read as a checkpoint: {_what_is_wrong(path)}') from error
    except Exception as error:  # bytes that are no pickle make the reader fail in any way
        raise ValueError(f'{path} cannot be read as a checkpoint: {_what_is_wrong(path)}') from error


def _what_is_wrong(path: Path) -> str:
    """With a file that torch cannot read, and what to do."""
    if (other := _other(path)) is not None:
        return other
    start = _beginning(path)
    if start.startswith(ZIP):
        return 'it is damaged, or its end is missing. Copy or download it again'
    if start.startswith(PICKLE):
        return ('it is damaged, or holds more than plain data, and is not loaded, because that could run code. Copy or '
                'download it again, or ask its author for a file with tensors only')
    return 'it is another kind of file. Give a .pth, .pt or .safetensors file'


def _other(path: Path) -> str | None:
    """What a file is that is no checkpoint of any kind, and what to do; None if it is not known."""
    start = _beginning(path)
    if not start:
        return 'it is empty. Copy or download it again'
    return next((text for beginning, text in OTHERS if start.startswith(beginning)), None)


def _beginning(path: Path) -> bytes:
    with open(path, 'rb') as file:
        return file.read(max(len(ZIP), *(len(beginning) for beginning, _ in OTHERS)))


def _is_program(path: Path) -> bool:
    """True for what torch.jit.save has written."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith('/constants.pkl') for name in archive.namelist())
    except zipfile.BadZipFile:  # is_zipfile looks at the end alone
        return False


def _unsafe_names(path: Path) -> list[str]:
    """The classes and functions that a file of torch's zip format would call."""
    if not zipfile.is_zipfile(path) or not hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint'):
        return []
    return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))


def listed(names: Iterable[object], most: int = 10) -> str:
    names = [str(name) for name in names]
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '')
