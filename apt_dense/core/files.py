"""Files that are whole or not there: the one place that writes them."""
import errno
import fcntl
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

PARTIAL = '.partial'  # ends the name of a file while it is written
HELD = (errno.EACCES, errno.EAGAIN)  # what a lock of another process gives


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
        OSError: if it cannot be written; nothing is left behind, and a file of that name is as it was.
    """
    path = Path(path)
    partial, own = path.with_name(path.name + PARTIAL), False
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(partial, 'ab') as file:
            error = try_lock(file)
            if error is not None and error.errno in HELD:
                raise OSError(error.errno, 'another process is writing it', str(partial))
            own = True
            file.truncate(0)
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
        _sync_directory(path.parent)
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
