"""Reading a large JSON object piece by piece: its lists are never whole in memory."""
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from apt_dense.mm.errors import DataError

CHUNK_CHARS = 4 << 20
DECODER = json.JSONDecoder()
LIST = object()  # stands for a list, before its items
OTHER_FORMATS = {
    b'version https://git-lfs': 'a Git LFS pointer, not the file itself: run git lfs pull',
    b'\x1f\x8b': 'compressed with gzip: unpack it',
    b'PK\x03\x04': 'a ZIP archive: unpack it',
    b'\xff\xfe': 'UTF-16 text: save it as UTF-8',
    b'\xfe\xff': 'UTF-16 text: save it as UTF-8',
    b'<': 'a web page or XML, not JSON: the download has failed',
}


class NotAnObjectError(DataError):
    """The JSON is no object."""


def read_sections(path: str, on_progress: Callable[[int], None] = lambda num_bytes: None) -> Iterator[tuple[str, Any]]:
    """Read a JSON file whose top level is an object.

    Args:
        path: UTF-8, with a byte order mark or without.
        on_progress: is told how many bytes were read since it was last called.

    Yields:
        (key, item) for each item of a list; (key, LIST) for a list before its items; (key, value) for other values.

    Raises:
        DataError: saying what the file is, or where it ends or breaks; NotAnObjectError if it is another kind of JSON.
    """
    with open(path, 'rb') as file:
        head = file.read(64)
    if not head.strip():
        raise DataError('is empty')
    for magic, said in OTHER_FORMATS.items():
        if head.removeprefix(b'\xef\xbb\xbf').lstrip().startswith(magic):
            raise DataError(f'is {said}')
    with open(path, encoding='utf-8-sig') as file:
        stream = _Stream(file, os.path.getsize(path), on_progress)
        try:
            yield from stream.sections()
        except json.JSONDecodeError as error:
            position = stream.num_dropped + error.pos
            if not stream.text[error.pos:].strip() or error.msg.startswith('Unterminated'):
                raise DataError(f'ends after {position} characters in the middle of the JSON: the download or copy was '
                                'cut off') from error
            raise DataError(f'is no JSON: {error.msg} at character {position}, near '
                            f'{stream.text[max(error.pos - 20, 0):error.pos + 20]!r}') from error
        except UnicodeDecodeError as error:
            raise DataError(f'is not UTF-8 text: {error}') from error
        except RecursionError as error:
            raise DataError('is no JSON of annotations: it is nested too deeply') from error


class _Stream:
    """The text from where reading stands, and no more than the piece that is decoded."""

    def __init__(self, file: TextIO, num_bytes: int, on_progress: Callable[[int], None]):
        self.file, self.num_bytes, self.on_progress = file, num_bytes, on_progress
        self.text, self.position = '', 0
        self.num_dropped = self._num_told = 0

    def sections(self) -> Iterator[tuple[str, Any]]:
        if self._next() != '{':
            raise NotAnObjectError(f'is {"a list" if self._next() == "[" else "a single value"}, not an object')
        self.position += 1
        more = self._next() != '}'
        while more:
            key = self._value()
            self._skip(':')
            if self._next() == '[':
                yield key, LIST
                self.position += 1
                while self._next() != ']':
                    yield key, self._value()
                    if self._next() != ']':
                        self._skip_comma(']')
                self.position += 1
            else:
                yield key, self._value()
            more = self._next() != '}'
            if more:
                self._skip_comma('}')
        self._skip('}')
        self._check_end()

    def _fill(self) -> bool:
        """Read on: as much as is waiting to be decoded, so that a long value is not tried too often."""
        more = self.file.read(max(CHUNK_CHARS, len(self.text) - self.position))
        if not more:
            return False
        self.num_dropped += self.position
        self.text, self.position = self.text[self.position:] + more, 0
        done = min(self.file.buffer.tell(), self.num_bytes)
        self.on_progress(done - self._num_told)
        self._num_told = done
        return True

    def _next(self) -> str:
        """The next character that is not a space; reading stands before it."""
        while True:
            while self.position < len(self.text):
                character = self.text[self.position]
                if character not in ' \t\n\r':
                    return character
                self.position += 1
            if not self._fill():
                raise json.JSONDecodeError('the text ends', self.text, self.position)

    def _skip(self, wanted: str) -> None:
        if self._next() != wanted:
            raise json.JSONDecodeError(f'Expecting {wanted!r}', self.text, self.position)
        self.position += 1

    def _skip_comma(self, end: str) -> None:
        """A comma, which something must follow."""
        self._skip(',')
        if self._next() == end:
            raise json.JSONDecodeError(f'a comma before {end!r}', self.text, self.position)

    def _check_end(self) -> None:
        """Nothing but spaces may follow: of two files in one, the second would be passed over."""
        while self.text[self.position:].strip() or self._fill():
            rest = self.text[self.position:].lstrip()
            if rest:
                raise json.JSONDecodeError('more text after the end of the JSON, such as of a second file', self.text,
                                           len(self.text) - len(rest))

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError:
                if not self._fill():
                    raise
                continue
            if end == len(self.text) and self._fill():  # a number may go on
                continue
            self.position = end
            return value
