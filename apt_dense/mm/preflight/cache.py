"""Remembering that a config and its data were checked: a restart pays nothing."""
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

import apt_dense
from apt_dense.core.files import write_atomically
from apt_dense.mm.preflight.datasets import SPLITS, paths_of

CHANGES_NOTHING = ('work_dir', 'load_from', 'resume', 'launcher', 'randomness')  # keys that no check looks at


def folder() -> Path:
    """Where results are kept: preflight/ in $APT_DENSE_CACHE, or in ~/.cache/apt_dense."""
    return Path(os.environ.get('APT_DENSE_CACHE') or '~/.cache/apt_dense').expanduser() / 'preflight'


def fingerprint(cfg: Config, *rest: Any) -> str:
    """A hash of all that a result depends on: config, files by size and time, and the checks themselves."""
    digest = hashlib.sha256()
    settings = {key: value for key, value in cfg.to_dict().items() if key not in CHANGES_NOTHING}
    for part in (apt_dense.__version__, os.getcwd(), rest, sorted(settings.items(), key=lambda item: item[0])):
        digest.update(repr(part).encode())
    checks = Path(__file__).parent
    for path in sorted({*checks.glob('*.py'), *checks.parent.glob('data/*.py')}):
        digest.update(path.read_bytes())
    for path in sorted({path for split in SPLITS for path in paths_of(cfg, split)}):
        for line in _states(path):
            digest.update(line.encode())
    return digest.hexdigest()[:32]


def load(key: str) -> list[str] | None:
    """The warnings of a check that found nothing to stop for; None if there was none."""
    try:
        return json.loads((folder() / f'{key}.json').read_text())
    except (OSError, ValueError):
        return None


def store(key: str, lines: list[str]) -> None:
    """Remember the warnings of a check that found nothing to stop for."""
    path = folder() / f'{key}.json'
    try:
        write_atomically(path, json.dumps(lines))
    except OSError as error:
        print_log(f'the result of the preflight is not kept ({error}): set APT_DENSE_CACHE to a folder that can be '
                  'written', level=logging.WARNING)


def _states(path: str) -> Iterator[str]:
    """Name, size and time of a file, or of all files below a folder."""
    if not os.path.isdir(path):
        yield _state(path, os.stat(path)) if os.path.exists(path) else f'{path} is missing\n'
        return
    seen = set()
    for parent, folders, _ in os.walk(path, followlinks=True):
        seen.add(os.path.realpath(parent))  # a link to a folder above would never end
        folders[:] = sorted(name for name in folders if os.path.realpath(os.path.join(parent, name)) not in seen)
        with os.scandir(parent) as entries:
            states = sorted(_state(entry.path, entry.stat()) for entry in entries if entry.is_file())
        yield ''.join((f'{parent}\n', *states))


def _state(path: str, status: os.stat_result) -> str:
    return f'{path} {status.st_size} {status.st_mtime_ns}\n'
