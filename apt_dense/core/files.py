"""Files that are whole or not there: the one place that writes them."""
import errno
import fcntl
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PARTIAL = '.partial'  # ends the name of a file while it is written
HELD = (errno.EACCES, errno.EAGAIN)  # what a lock of another process gives


class NotWritten(OSError):
    """A file that could not be written, and of which nothing is left; errno and strerror are the cause's."""

    def __str__(self) -> str:
        remedy = 'Make room there, or choose' if self.errno in NO_SPACE else 'Choose'
        return f'{self.filename} cannot be written: {self.strerror}. {remedy} another place'


class _ErrorsKept:
    """A file for a writer that cannot bear an error: torch's ends the process.  It is kept, and the rest dropped."""

    def __init__(self, file: IO[bytes]):
        self._file, self.error = file, None

    def write(self, content: bytes) -> int:
        """Write, until it fails."""
        if self.error is None:
            try:
                return self._file.write(content)
            except OSError as error:
                self.error = error
        return len(memoryview(content).cast('B'))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def try_lock(file: IO) -> OSError | None:
    """Lock a file that is open for writing, without waiting.

    It is a POSIX record lock: the kernel drops it when this process closes the file or ends, however it ends, and
    children do not inherit it.

    Returns:
        None if it is held now; else the error, whose errno is in HELD if another process holds it; any other means that
        the file system has no locks.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error
    return None


def write_atomically(path: str | Path, content: bytes | str | Callable[[IO[bytes]], None]) -> None:
    """Write a file under another name beside it, to the disk, then rename it: it is whole, or it is what it was.

    Its directory is made if it is not there.  The file is locked while it is written, so that nobody takes it for a
    leftover.

    Args:
        content: bytes, text (as UTF-8), or a function that writes to the open file.

    Raises:
        NotWritten: if it cannot be written; nothing is left behind, and a file of that name is as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_and_rename(path, content)
        _sync_directory(path.parent)
    except OSError as error:
        raise NotWritten(error.errno, error.strerror or str(error), str(path)) from error


def _write_and_rename(path: Path, content: bytes | str | Callable[[IO[bytes]], None]) -> None:
    partial, own = path.with_name(path.name + PARTIAL), False
    try:
        with open(partial, 'ab') as file:
            error = try_lock(file)
            if error is not None and error.errno in HELD:
                raise OSError(error.errno, 'another process is writing it', str(partial))
            own = True
            file.truncate(0)
            if callable(content):
                kept = _ErrorsKept(file)
                content(kept)
                if kept.error is not None:
                    raise kept.error
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
    except BaseException:
        if own and partial.is_file():
            partial.unlink()
        raise


def _sync_directory(path: Path) -> None:
    """Put the renaming on the disk too."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_folder(folder: str | Path, option: str = 'the folder') -> None:
    """Check that files can be written into a folder, before there is anything to write; nothing is left behind.

    Args:
        folder: need not be there.
        option: what names it, for the message.

    Raises:
        ValueError: if it cannot be made, or takes no files.
    """
    folder, made = Path(folder), []
    try:
        for each in reversed([folder, *folder.parents]):
            if not each.exists():
                each.mkdir(exist_ok=True)
                made.append(each)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f'{option} {folder} takes no files: {error.strerror}. Choose another folder') from error
    finally:
        for each in reversed(made):
            with suppress(OSError):  # another process writes into it by now
                each.rmdir()


def check_target(file: str | Path, option: str = 'the file') -> None:
    """Check that a file can be written, or written over; see ``check_folder``.

    Raises:
        ValueError: if it is a folder, or its own takes no files.
    """
    if Path(file).is_dir():
        raise ValueError(f'{option} {file} is a folder: give the name of a file')
    check_folder(Path(file).parent, f'the folder of {option} {file},')
