"""Which errors a user can mend, and the one message of each: a traceback would hide it."""
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from apt_dense.core.files import NO_SPACE, NotWritten
from apt_dense.mm.errors import DataError, LaunchError
from apt_dense.mm.fault_tolerance.checkpointing import WorkDirError

PACKAGE = str(Path(__file__).parents[2])
LAST_PLACE = re.compile(r'.*^\s*File "([^"]+)", line \d+', re.MULTILINE | re.DOTALL)  # of a traceback in a text
MISSING = re.compile(r"\[Errno \d+\] (?P<reason>[^:\n]+): '(?P<path>[^'\n]+)'\s*$")
UNDECODED = re.compile(r'^(?:AssertionError: )?failed to load image: (?P<path>.+)$', re.MULTILINE)  # mmcv's
ABOUT_FILES = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
REMEDY = "Put it there, repair or remove it; to leave out such samples in training: GuardSamples with on_bad='skip'"


def user_message(error: BaseException) -> str | None:
    """What to print instead of a traceback; None for an error that only its traceback explains.

    That is the text of a LaunchError, a DataError or a ValueError that this project's code has raised, also where a
    registry has raised it again with words of its own or a data loader's worker has sent it as a text; a file of the
    data that is missing, locked or damaged; a work directory that cannot be used, a file that cannot be written.
    """
    if isinstance(error, (WorkDirError, NotWritten)):
        return str(error)
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return (f'{error.filename or "a file"} cannot be written: {error.strerror}. Make room or choose another '
                '--work-dir; a training goes on with --resume')
    for each in _same_errors(error):
        if isinstance(each, (LaunchError, DataError)) or isinstance(each, ValueError) and _is_ours(each):
            return _last_words(each)
    text = str(error)
    if isinstance(error, ABOUT_FILES):
        found = MISSING.search(text)
        path, reason = (error.filename, error.strerror) if error.filename else found.group('path', 'reason') if (
            found) else (None, None)
        return f'{path}: {reason}. {REMEDY}' if path else None
    undecoded = UNDECODED.search(text) if isinstance(error, AssertionError) else None
    return f'{undecoded["path"]} is no picture that can be read. {REMEDY}' if undecoded else None


def _same_errors(error: BaseException) -> Iterator[BaseException]:
    """An error and those whose words it repeats, the outermost first."""
    yield error
    inner = error.__cause__ or error.__context__
    if inner is not None and str(inner) and str(inner) in str(error):
        yield from _same_errors(inner)


def _is_ours(error: BaseException) -> bool:
    """Whether this project's code has raised it, here or in a worker."""
    in_worker = LAST_PLACE.match(str(error))
    place = in_worker[1] if in_worker else _file_of(error.__traceback__)
    return place.startswith(PACKAGE)


def _file_of(traceback: TracebackType | None) -> str:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code.co_filename if traceback is not None else ''


def _last_words(error: BaseException) -> str:
    """Its message, without the traceback of a worker."""
    return str(error).rpartition(f'{type(error).__name__}: ')[2].strip()
