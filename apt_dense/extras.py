"""Packages that only a part of the code needs: where one is missing, the error names the extra that brings it."""
from collections.abc import Iterator
from contextlib import contextmanager


def install_command(extra: str) -> str:
    """How to install the packages of one of setup.py's extras, in a clone of the project and without one."""
    if extra == 'mm':  # without the build of OpenCV that needs libGL
        return ("make setup VENV=ENVIRONMENT in the project's folder (docs/get_started.md); without one, pip install "
                "'apt-dense[mm]'")
    return f"pip install -e '.[{extra}]' in the project's folder; without one, pip install 'apt-dense[{extra}]'"


@contextmanager
def from_extra(extra: str) -> Iterator[None]:
    """Context for imports of packages that one of setup.py's extras installs.

    Raises:
        ModuleNotFoundError: naming the missing package and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or '').partition('.')[0]
        if name in ('', 'apt_dense'):
            raise
        raise ModuleNotFoundError(f'{name} is not installed. What is needed here is in the extra {extra!r}: '
                                  f'{install_command(extra)}', name=error.name) from error
