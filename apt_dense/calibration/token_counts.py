"""A cache of token counts, one for each image of a dataset, that is refused once its settings have changed."""
import json
from pathlib import Path
from typing import Any

from apt_dense.core.files import write_atomically


def write_token_counts(path: Path, settings: dict[str, Any], tokens: dict[str, int]) -> None:
    """Write a JSON file; it is complete or, after an interruption, what it was before.

    Args:
        settings: everything that the counts depend on, thresholds included.
        tokens: the image's path, as the dataset gives it, -> its number of tokens, class tokens not counted.
    """
    content = json.dumps({'settings': settings, 'tokens': tokens}, indent=1, default=str) + '\n'
    write_atomically(path, content)


def load_token_counts(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Read what ``write_token_counts`` wrote: its settings and tokens, unchecked.

    Raises:
        ValueError: if the file is missing or no such cache.
    """
    try:
        content = json.loads(path.read_text())
        return content['settings'], content['tokens']
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = 'does not exist' if isinstance(error, FileNotFoundError) else 'is no cache of token counts'
        raise ValueError(f'{path} {what}: make it with tools/analysis_tools/calibrate_thresholds.py '
                         '--save-tokens') from error


def read_token_counts(path: Path, settings: dict[str, Any]) -> dict[str, int]:
    """Read what ``write_token_counts`` wrote with the same settings.

    Raises:
        ValueError: if the file is missing, no such cache, or was made with other settings: names them.
    """
    found, tokens = load_token_counts(path)
    wanted = json.loads(json.dumps(settings, default=str))
    stale = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if stale:
        changes = '; '.join(f'{name} was {found.get(name)}, is {wanted.get(name)}' for name in stale)
        raise ValueError(f'{path} was made with other settings: {changes}. Make it again with '
                         'tools/analysis_tools/calibrate_thresholds.py --save-tokens')
    return tokens
