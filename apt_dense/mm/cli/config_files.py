"""Config files: those of this project by their name, any other by its path."""
import difflib
from pathlib import Path
from typing import Any

from mmengine.config import Config

import apt_dense
from apt_dense.mm.cli.start import described
from apt_dense.mm.errors import LaunchError

CONFIGS = Path(apt_dense.__file__).parent / '.mim/configs'
SUFFIXES = ('.py', '.yml', '.yaml', '.json')  # that mmengine reads


def find_config(source: str, folder: Path = CONFIGS) -> Path:
    """The file of a config.

    Args:
        source: a path, or the name of a config of this project: 'apt_eva02_l_coco'.
        folder: of those with a name.

    Raises:
        LaunchError: if it is not there, or no file that a config may be.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        path = _named(source, folder)
    if path.suffix not in SUFFIXES:
        raise LaunchError(f'{source} is no config: give a file that ends in {", ".join(SUFFIXES)}, or the name of a '
                          'config of this project')
    return path


def _named(source: str, folder: Path) -> Path:
    names = {file.stem: file for file in sorted(folder.glob('*.py'))}
    if source in names:
        return names[source]
    path = Path(source).expanduser()
    if source and path.is_dir():
        raise LaunchError(f'config {source} is a folder: give a file of it')
    near = ' or '.join(difflib.get_close_matches(path.stem, names, 3, 0.3)) or next(iter(names), 'none is there')
    if path.suffix or len(path.parts) > 1:
        raise LaunchError(f'config {described(source)} does not exist: give its file, or a config of this project by '
                          f'name: {near}')
    raise LaunchError(f'{source!r} is no config of this project, and no file: did you mean {near}?')


def read_config(source: str, folder: Path = CONFIGS, **options: Any) -> Config:
    """Read a config, see ``find_config``.

    Args:
        options: of mmengine's ``Config.fromfile``.

    Raises:
        LaunchError: if it cannot be found or read, whatever its code raises.
    """
    path = find_config(source, folder)
    try:
        return Config.fromfile(path, **options)
    except Exception as error:  # it is Python, which may raise anything
        cause = _without_wrappers(error)
        reason = ' '.join(str(cause).split())
        if isinstance(cause, ModuleNotFoundError) and cause.__cause__ is not None:  # from_extra has said what to do
            raise LaunchError(f'config {source} cannot be read: {reason}') from error
        raise LaunchError(f'config {source} cannot be read, mend it: {type(cause).__name__}: {reason}') from error


def _without_wrappers(error: BaseException) -> BaseException:
    """What has failed in an import of ``custom_imports``, which mmengine reports as a failed import alone."""
    while isinstance(error, ImportError) and str(error).startswith('Failed to import') and error.__context__:
        error = error.__context__
    return error
