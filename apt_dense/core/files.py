"""Files that are whole or not there: the one place that writes them."""
import errno
import fcntl
import os
from collections.abc import Callable
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
