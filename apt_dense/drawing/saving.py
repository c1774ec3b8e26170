"""Pictures as files that are whole or not there."""
from io import BytesIO
from pathlib import Path
from typing import Any

from apt_dense.core.files import check_target, write_atomically
from apt_dense.extras import from_extra

with from_extra('images'):
    from PIL import Image


def save_picture(picture: Image.Image, path: Path, **options: Any) -> None:
    """Write a picture in the format that the path's ending names; its folder is made if it is not there.

    Args:
        options: of Pillow's ``save``.

    Raises:
        NotWritten: if it cannot be written; nothing is left behind.
    """
    content = BytesIO()
    picture.save(content, Image.registered_extensions()[path.suffix.lower()], **options)
    write_atomically(path, content.getvalue())


def check_figure_target(path: Path, option: str) -> None:
    """Check, before time is spent, that a figure can be written; see ``check_target``.

    Raises:
        ValueError: also for an ending that matplotlib knows no format for.
    """
    with from_extra('tools'):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    known = sorted(FigureCanvasAgg.get_supported_filetypes())
    if path.suffix[1:].lower() not in known:
        raise ValueError(f'{option} {path}: wanted a name that ends in one of {", ".join(known)}')
    check_target(path, option)


def save_figure(figure: Any, path: Path, **options: Any) -> None:
    """Write a figure of matplotlib, see ``save_picture``; options are those of its ``savefig``."""
    content = BytesIO()
    figure.savefig(content, format=path.suffix[1:], **options)
    write_atomically(path, content.getvalue())
