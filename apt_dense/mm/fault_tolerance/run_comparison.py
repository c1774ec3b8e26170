"""Whether a resumed run equals an uninterrupted one."""
import json
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import HistoryBuffer

from apt_dense.core.checkpoint_files import restore_globals
from apt_dense.mm import compat  # noqa: F401  (what mmengine stores may be loaded)

# Times, the run's name and settings, and the names of checkpoint files: one more is written when a signal comes.
NOT_COMPARED = ('cfg', 'experiment_name', 'time', '.eta', 'tokens_per_second', '_ckpt', 'keep_ckpt_ids')


def load(path: Path) -> dict:
    """A checkpoint, on the CPU."""
    restore_globals()
    return torch.load(path, map_location='cpu', weights_only=True)  # all of it: the file may be overwritten later


def differing(one: Any, other: Any, path: str = '') -> set[str]:
    """Paths at which two checkpoints differ, tensors bit by bit; see NOT_COMPARED."""
    if path.endswith(NOT_COMPARED):
        return set()
    if isinstance(one, dict) and isinstance(other, dict):
        found = {f'{path}.{key}' for key in one.keys() ^ other.keys()}
        return found.union(*(differing(one[key], other[key], f'{path}.{key}') for key in one.keys() & other.keys()))
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return {path}
        return set().union(*(differing(a, b, f'{path}.{i}') for i, (a, b) in enumerate(zip(one, other, strict=True))))
    if isinstance(one, torch.Tensor):
        return set() if torch.equal(one, other) else {path}
    if isinstance(one, HistoryBuffer):
        return differing(one._log_history.tolist(), other._log_history.tolist(), path)
    return set() if one == other else {path}


def logged(work: Path) -> dict[int, dict]:
    """Iteration -> what the logs of all runs in a directory have of it, times left out.

    A kill may cut the last line of a log.

    Raises:
        ValueError: if two runs log an iteration differently.
    """
    entries = {}
    for path in sorted(work.rglob('vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            if not line.endswith('}'):
                continue
            entry = {key: value for key, value in json.loads(line).items()
                     if not key.endswith('time') and key != 'tokens_per_second'}
            if 'loss' in entry and entries.setdefault(entry['iter'], entry) != entry:
                raise ValueError(f'{path.parent.parent.name} logs iteration {entry["iter"]} as {entry}, an earlier run '
                                 f'as {entries[entry["iter"]]}')
    return entries
