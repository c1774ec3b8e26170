"""Checkpoints of mmengine are read, and no code in them is run."""
import codecs
import functools
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mmengine.runner.checkpoint
import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from apt_dense.core.checkpoint_files import allow_globals, restore_globals
from apt_dense.mm.compat.replacing import replace_once

# The second is what a user sets who trusts every file; it must not undo the first.
TORCH_LOAD_SWITCHES = ('TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD')


def allow_mmengine_checkpoints() -> None:
    """Let torch.load(weights_only=True), the default since torch 2.6, read the checkpoints that mmengine writes.

    They hold the log's HistoryBuffers, numpy arrays and numpy scalars.  All else is refused as before: a checkpoint
    cannot run code.

    Delete when mmengine saves nothing but tensors and builtin types, or registers these types itself, with a
    narrower getattr than the builtin one.
    """
    allow_globals(_checkpoint_globals())


@functools.cache
def _checkpoint_globals() -> list[Callable]:
    """What a checkpoint may name beside torch's own list.

    The two functions that numpy pickles through are called numpy.core.multiarray before numpy 2 and
    numpy._core.multiarray since; a file from either must load on either.  torch learned (object, name) pairs only after
    2.4, so each name gets a function that carries it.
    """
    reconstruct, scalar = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    modules = ('numpy.core.multiarray', 'numpy._core.multiarray')
    return [
        HistoryBuffer, np.ndarray, np.dtype,
        codecs.encode,  # array data; on torch's own list by 2.6
        *{type(np.dtype(code)) for code in '?bhilqBHILQefd'},
        *(_under_name(reconstruct, module, '_reconstruct') for module in modules),
        *(_under_name(scalar, module, 'scalar') for module in modules),
        _under_name(_history_statistic, 'builtins', 'getattr'),
    ]


def _under_name(function: Callable, module: str, name: str) -> Callable:
    """A function that does what ``function`` does and that torch finds as ``module.name``."""

    def named(*args: Any) -> Any:
        return function(*args)

    named.__module__, named.__name__, named.__qualname__ = module, name, name
    return named


def _history_statistic(owner: Any, name: Any) -> Callable:
    """Stand in for getattr inside a checkpoint: HistoryBuffer's four statistics; the builtin would reach everything."""
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed in a checkpoint')


def load_checkpoints_safely() -> None:
    """Make every loader of mmengine refuse code in a checkpoint: local files, addresses, buckets, on any torch.

    Concerns training, resuming, testing, and the packages' init_detector, init_model and inferencers, which all load
    through CheckpointLoader.  Without it mmengine leaves the choice to torch, whose default is unsafe before 2.6 and
    for addresses (torch.hub) on every version.  onedl-mmengine has a loader of its own, which allows the builtin
    getattr, through which a checkpoint reaches everything, takes what both allow from the list again, and loads a
    refused file a second time with weights_only=False: torch.load takes its place.

    The text under meta['config'], of mmengine's early days, is left out: on resuming, mmengine would execute it as
    Python to learn the number of GPUs.

    Delete when mmengine passes weights_only=True itself, and no longer runs that text.
    """

    def make(original: Callable) -> Callable:

        def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
            restore_globals()
            with _only_safe_loading():
                checkpoint = original(*args, **kwargs)
            meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
            if isinstance(meta, dict):
                meta.pop('config', None)
            return checkpoint

        return load_checkpoint

    replace_once(mmengine.runner.checkpoint.CheckpointLoader, 'load_checkpoint', make, static=True)
    if hasattr(mmengine.runner.checkpoint, '_safe_torch_load'):  # onedl-mmengine
        replace_once(mmengine.runner.checkpoint, '_safe_torch_load', lambda original: _load_with_torch)


def _load_with_torch(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
    """torch.load, with the arguments of onedl-mmengine's loader."""
    return torch.load(file, map_location=map_location, weights_only=weights_only is not False)


@contextmanager
def _only_safe_loading() -> Iterator[None]:
    """torch.load with weights_only=True, whatever it is asked for: torch's own switch."""
    before = {name: os.environ.pop(name, None) for name in TORCH_LOAD_SWITCHES}
    os.environ[TORCH_LOAD_SWITCHES[0]] = '1'
    try:
        yield
    finally:
        del os.environ[TORCH_LOAD_SWITCHES[0]]
        os.environ.update({name: value for name, value in before.items() if value is not None})
