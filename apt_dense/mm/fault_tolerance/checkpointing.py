"""Checkpoints that survive a kill and a full disk, and one training run for each work directory.

Importing the module makes mmengine's local file backend write whole files or none.
"""
import glob
import hashlib
import logging
import os
import re
import shutil
import socket
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from apt_dense.core.files import HELD, NO_SPACE, NotWritten, try_lock, write_atomically
from apt_dense.mm.fault_tolerance.leftovers import LAST_CHECKPOINT, STOPPED, remove_leftovers

LOCK = '.train.lock'


class WorkDirError(OSError):
    """A work directory cannot be used or written; the message says all, a traceback would hide it."""

    def __str__(self) -> str:
        return self.strerror


def write_to_work_dir(path: str | Path, content: bytes) -> None:
    """``files.write_atomically`` with an error that says what to do.

    Raises:
        WorkDirError: if it cannot be written; nothing is left behind, and a file of that name is as it was.
    """
    try:
        write_atomically(path, content)
    except NotWritten as error:
        raise WorkDirError(error.errno, _explained(error.__cause__, Path(path), len(content))) from error


def _explained(error: OSError, path: Path, size: int) -> str:
    what = f'{path} cannot be written: {error.strerror}'
    if error.filename not in (None, str(path)):
        what += f' ({error.filename})'
    if error.errno in NO_SPACE:
        free = shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.is_dir())).free
        what += f'. It needs {size / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free there'
    return (f'{what}. Nothing was lost: earlier files are as they were. Make room or choose another --work-dir, and go '
            'on with --resume')


@register_backend('local', force=True, prefixes='')
class AtomicLocalBackend(LocalBackend):
    """mmengine's backend for local files, which writes whole files or none."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes; raises WorkDirError as write_to_work_dir does."""
        write_to_work_dir(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text; raises WorkDirError as write_to_work_dir does."""
        write_to_work_dir(filepath, obj.encode(encoding))


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, which removes an old checkpoint only after the next one is on the disk.

    mmengine removes first: with ``max_keep_ckpts=1`` a kill during the write leaves nothing.  The same holds for the
    best checkpoint, and for the file that names the last one.  Arguments are CheckpointHook's.
    """

    _postponed = None  # (step, meta) of saves while the best checkpoint is saved
    _outdated_best = ()

    def save_now(self, runner: Runner) -> str:
        """Save after this training iteration, whatever the interval; called from after_train_iter, after this hook.

        Counting by epochs, the file is 'stopped.pth', and the next one of that name replaces it.

        Returns:
            The path of the checkpoint.
        """
        if self.by_epoch:
            self._write(runner, STOPPED, dict(epoch=runner.epoch, iter=runner.iter + 1))
        elif Path(self.last_ckpt or '').name != self.filename_tmpl.format(runner.iter + 1):
            self._save_checkpoint(runner)
        return self.last_ckpt

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        if self._postponed is not None:
            self._postponed.append((step, meta))
            return
        outdated = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            steps = [*self.keep_ckpt_ids, step]
            outdated = steps[:-self.max_keep_ckpts]
            self.keep_ckpt_ids = deque(steps[len(outdated):])
            # The outdated are in the checkpoint's list: killed before they are removed, the next run removes them.
            runner.message_hub.update_info('keep_ckpt_ids', steps)
        self._write(runner, self.filename_tmpl.format(step), meta)
        if is_main_process():
            self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)) for old in outdated)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        backend = self.file_backend
        self.file_backend = later = _RemoveLater(backend)
        self._postponed = []
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        self._outdated_best = later.paths

    def after_val(self, runner: Runner) -> None:
        """Save again what should name the new best checkpoint, now that every hook is done with the validation."""
        postponed, self._postponed = self._postponed or [], None
        for step, meta in postponed:
            self._save_checkpoint_with_step(runner, step, meta)
        self._remove(self._outdated_best)
        self._outdated_best = []

    def _write(self, runner: Runner, name: str, meta: dict) -> None:
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir, name, self.file_client_args, save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch,
            backend_args=self.backend_args, **self.args)
        if is_main_process():
            write_to_work_dir(Path(runner.work_dir, LAST_CHECKPOINT), self.last_ckpt.encode())

    def _remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # sharded checkpoints are directories
                self.file_backend.rmtree(path)


class _RemoveLater:
    """A file backend that only notes what it is told to remove."""

    def __init__(self, backend: Any):
        self._backend = backend
        self.paths = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.paths.append(path)

    rmtree = remove


def find_checkpoints(work_dir: str | Path, *more: str | Path, names: Sequence[str] = ()) -> list[Path]:
    """The checkpoints of a work directory and more folders that its run writes into, the one to resume first.

    That is the one which ``last_checkpoint`` names, whether it is there or not; then come, newest by file time first,
    iter_*.pth, epoch_*.pth and stopped.pth in the folders and beside the named one.  Partly written files have
    another name and are never looked at.

    Args:
        names: more name templates than mmengine's own, such as 'model_{}.pth'.
    """
    pointer, folders, named = Path(work_dir, LAST_CHECKPOINT), [Path(work_dir), *map(Path, more)], []
    content = pointer.read_text().strip() if pointer.is_file() else ''
    if content:
        named.append(Path(content))
        folders.append(Path(content).parent)
    patterns = ['iter_*.pth', 'epoch_*.pth', STOPPED, *(re.sub(r'{[^{}]*}', '*', glob.escape(name)) for name in names)]
    found = {path for folder in folders for pattern in patterns for path in folder.glob(pattern)}
    return named + sorted(found - set(named), key=lambda path: path.stat().st_mtime, reverse=True)


def find_last_good_checkpoint(work_dir: str | Path, *more: str | Path, names: Sequence[str] = ()) -> str | None:
    """The first whole one of ``find_checkpoints``.  What is passed over is logged.

    Returns:
        Its path; that of the first candidate if there are some and none is whole; None if there is none.
    """
    candidates = find_checkpoints(work_dir, *more, names=names)
    for path in candidates:
        damage = find_damage(path)
        if damage is None:
            return str(path)
        print_log(f'checkpoint {path} is passed over: {damage}', level=logging.WARNING)
    return str(candidates[0]) if candidates else None


def find_damage(path: str | Path) -> str | None:
    """What is wrong with a checkpoint file, from its zip directory and checksums; None if it is whole.

    Reads the whole file and runs nothing in it.  A directory (a sharded checkpoint) is taken as it is.
    """
    if Path(path).is_dir():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        return str(error)
    return f'the checksum of {record} is wrong' if record else None


def checkpoint_identity(path: str | Path) -> str:
    """Tell a checkpoint file from others of its name, by the names, sizes and checksums in its zip directory.

    Nothing else of it is read.  A file of torch's old format goes by its size.
    """
    path = Path(path).expanduser()
    if not zipfile.is_zipfile(path):
        return str(path.stat().st_size)
    with zipfile.ZipFile(path) as archive:
        records = [(record.filename, record.file_size, record.CRC) for record in archive.infolist()]
    return hashlib.sha256(repr(records).encode()).hexdigest()


@contextmanager
def claim_work_dir(work_dir: str | Path, names: Sequence[str] = ()) -> Iterator[None]:
    """Hold the work directory for one training run; clean up what a killed one left in it.

    WORK_DIR/.train.lock is locked (see ``leftovers.try_lock``): the data loader's workers, which may outlive this
    process by seconds, do not inherit that.  Between machines it works where the file system has such locks (local
    disks, NFS 4, Lustre with -o flock); elsewhere a warning is printed and nothing is locked.

    Args:
        names: as ``leftovers.remove_leftovers``.

    Raises:
        WorkDirError: if the directory cannot be made or written, or another run holds it.
    """
    path = Path(work_dir, LOCK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, 'a+')  # noqa: SIM115  (held below)
    except OSError as error:
        raise WorkDirError(error.errno, f'work directory {work_dir} cannot be written: {error.strerror} '
                           f'({error.filename}). Choose another: --work-dir PATH') from error
    with file:
        _lock(file, work_dir)
        remove_leftovers(work_dir, names)
        yield


def _lock(file: Any, work_dir: str | Path) -> None:
    error = try_lock(file)
    if error is not None and error.errno in HELD:
        file.seek(0)
        raise WorkDirError(error.errno, f'work directory {work_dir} is in use by {file.read().strip() or "another run"}'
                           ': two runs would overwrite each other. Wait for its end, or choose another: --work-dir '
                           'PATH')
    if error is not None:
        print_log(f'{work_dir} cannot be locked on this file system ({error.strerror}): see to it that no other run '
                  'uses it', level=logging.WARNING)
        return
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
