"""Partly written files: how they are named, who is writing one, and which of them a killed run has left behind."""
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from apt_dense.core.files import HELD, PARTIAL, try_lock

LAST_CHECKPOINT = 'last_checkpoint'  # mmengine's file that names the last checkpoint
STOPPED = 'stopped.pth'  # saved in the middle of an epoch


def checkpoint_folders(cfg: Config) -> list[Path]:
    """The local directories beside the work directory that checkpoint hooks write into: OUT_DIR/NAME_OF_WORK_DIR."""
    work_dir, folders = Path(cfg.work_dir).absolute(), []
    for hook in _checkpoint_hooks(cfg):
        out_dir = hook.get('out_dir')
        elsewhere = hook.get('backend_args') or hook.get('file_client_args') or '://' in str(out_dir)
        if out_dir and not elsewhere and str(out_dir) != str(work_dir):  # as mmengine compares them
            folders.append(Path(out_dir, work_dir.name))
    return list(dict.fromkeys(folder for folder in folders if folder.absolute() != work_dir))


def checkpoint_names(cfg: Config) -> list[str]:
    """The name templates of checkpoints that a config sets, such as 'model_{}.pth'."""
    return [hook['filename_tmpl'] for hook in _checkpoint_hooks(cfg) if hook.get('filename_tmpl')]


def _checkpoint_hooks(cfg: Config) -> list[dict[str, Any]]:
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or ())]
    return [hook for hook in hooks if isinstance(hook, dict) and _name(hook.get('type')).endswith('CheckpointHook')]


def _name(kind: str | type | None) -> str:
    return getattr(kind, '__name__', str(kind))


def remove_leftovers(folder: str | Path, names: Sequence[str] = ()) -> None:
    """Remove the partly written checkpoints that a killed run has left in a directory, and log each.

    Files of other names are anybody's, and are not touched.  What another process is writing stays; so does what cannot
    be told from that, on a file system without locks: the next checkpoint of its name will replace it.

    Args:
        folder: looked at without what is below it.
        names: more name templates than mmengine's own, 'iter_{}.pth' and 'epoch_{}.pth'.
    """
    own = _own_names(names)
    for path in sorted(Path(folder).glob(f'*{PARTIAL}')):
        if not own.fullmatch(path.name):
            continue
        if path.is_symlink() or not path.is_file():
            print_log(f'{path} is no file, and the checkpoint of its name cannot be written: remove it',
                      level=logging.WARNING)
            continue
        try:
            _remove_unless_written(path)
        except OSError as error:
            print_log(f'{path}, which an interrupted run did not finish, cannot be removed: {error.strerror}',
                      level=logging.WARNING)


def _remove_unless_written(path: Path) -> None:
    with open(path, 'r+b') as file:
        error = try_lock(file)
        if error is None:
            path.unlink()
            print_log(f'{path}, which an interrupted run did not finish, is removed')
        elif error.errno in HELD:
            print_log(f'{path} is left: another process is writing it', level=logging.WARNING)
        else:
            print_log(f'{path} is left: whether another process is writing it cannot be told on this file system '
                      f'({error.strerror})', level=logging.WARNING)


def _own_names(templates: Sequence[str]) -> re.Pattern:
    """Names of partly written checkpoints: of a step, the best, one stopped on the way, published, and the pointer."""
    steps = []
    for template in ('iter_{}.pth', 'epoch_{}.pth', *templates):
        stem, suffix = os.path.splitext(template)
        steps.append(re.sub(r'\\\{.*?\\\}', r'\\d+', re.escape(stem)) + '(-[0-9a-f]{8})?' + re.escape(suffix))
    return re.compile(rf'((best_.+_)?({"|".join(steps)})|{re.escape(STOPPED)}|{LAST_CHECKPOINT}){re.escape(PARTIAL)}')
