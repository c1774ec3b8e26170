"""Results of cells in one file, a line of JSON for each, in the order of their names."""
import json
from pathlib import Path
from typing import Any

from cells import Cell

from apt_dense.core.files import write_atomically


class Results:
    """The results in a file; the newest of each cell, also the failed ones.

    Args:
        path: of the file, which need not be there.

    Raises:
        ValueError: for a line that is no result, with its number.
    """

    def __init__(self, path: Path):
        self.path = path
        self._by_name: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(path.read_text().splitlines() if path.is_file() else (), start=1):
            try:
                result = json.loads(line)
                self._by_name[Cell.from_json(result['cell']).name] = result
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f'{path}, line {number} is no result of a cell ({error!r}): take it out') from error

    def get(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's result, of whatever config and code; None if there is none."""
        return self._by_name.get(cell.name)

    def cells(self) -> list[Cell]:
        """All cells that have a result, by name."""
        return [Cell.from_json(self._by_name[name]['cell']) for name in sorted(self._by_name)]

    def put(self, result: dict[str, Any]) -> None:
        """Keep a result, in place of an older one of the same cell, and write the file."""
        self._by_name[Cell.from_json(result['cell']).name] = result
        write_atomically(self.path, ''.join(json.dumps(rounded(self._by_name[name]), sort_keys=True) + '\n'
                                            for name in sorted(self._by_name)))


def rounded(value: Any, digits: int = 6) -> Any:
    """JSON content with its numbers rounded to six significant digits."""
    if isinstance(value, float):
        return float(f'{value:.{digits}g}')
    if isinstance(value, dict):
        return {key: rounded(entry, digits) for key, entry in value.items()}
    return [rounded(entry, digits) for entry in value] if isinstance(value, (list, tuple)) else value
