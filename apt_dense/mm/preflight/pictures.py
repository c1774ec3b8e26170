"""Checks of the pictures that a COCO file lists: from folder listings and headers, pixels only if asked."""
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import cv2
from PIL import UnidentifiedImageError

from apt_dense.mm.preflight import coco_rules as rules
from apt_dense.mm.preflight.datasets import Source, is_remote, joined, steps_of
from apt_dense.mm.preflight.findings import STOP, WARN, Finding
from apt_dense.mm.preflight.headers import open_header, reads_pictures
from apt_dense.mm.preflight.tally import Tally

HEADERS = 1000  # of so many pictures, evenly over the file, size and EXIF data are read
PIXELS = 200  # with --deep sample so many are decoded
ORIENTATION = 0x0112  # EXIF
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height


def check_pictures(source: Source, images: Sequence[dict], deep: str | None, mends: bool) -> Iterator[Finding]:
    """Check that pictures are there, and that their size is the file's.

    Args:
        source: the dataset.
        images: the images that it will load, of the COCO file.
        deep: None reads headers of a sample; 'sample' decodes some pictures too, 'all' reads and decodes all.
        mends: True for a dataset that reads backslashes as slashes.
    """
    folder = joined(source.settings, (source.settings.get('data_prefix') or {}).get('img') or '')
    if is_remote(source.settings, folder):
        return
    tally = Tally(folder or '.')
    listing = _Listing()
    there = []
    for image in images:
        path = os.path.join(folder, image['file_name'])
        slashed = path.replace('\\', '/')
        if listing.has(path):
            there.append((path, image))
        elif slashed != path and listing.has(slashed):
            tally.add(rules.BACKSLASHES if mends else rules.PICTURE_MISSING, '{}', image['file_name'])
            there.append((slashed, image))
        else:
            tally.add(rules.PICTURE_MISSING, '{}{}', image['file_name'], listing.hint(path))
    loads_stored = _loads_stored(source)
    if not reads_pictures(steps_of(source.settings.get('pipeline'))):  # what its loader reads is not known here
        there = []
    for path, image in _sample(there, None if deep == 'all' else HEADERS):
        _check_header(path, image, loads_stored, tally)
    for path, _ in _sample(there, {None: 0, 'sample': PIXELS, 'all': None}[deep]):
        if cv2.imread(path, cv2.IMREAD_UNCHANGED) is None:
            tally.add(rules.PICTURE_UNREADABLE, '{} does not decode', path)
    skips = any(step.get('type') == 'GuardSamples' and step.get('on_bad') == 'skip'
                for step in steps_of(source.settings.get('pipeline'))) and not source.settings.get('test_mode')
    for finding in tally.findings():
        if finding.rule.severity == STOP and skips and finding.count < len(images):
            finding = replace(finding, rule=replace(finding.rule, severity=WARN, remedy='Skipped (on_bad)'))
        yield replace(finding, got=f'{finding.count} of {len(images)}: {finding.got}', count=1)


class _Listing:
    """Which files are there: one listing of each folder, not a question for each file."""

    def __init__(self):
        self._names: dict[str, frozenset[str]] = {}

    def _of(self, folder: str) -> frozenset[str]:
        if folder not in self._names:
            self._names[folder] = frozenset(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else frozenset()
        return self._names[folder]

    def has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        return name in self._of(folder)

    def hint(self, path: str) -> str:
        """What there is instead of a missing file."""
        folder, name = os.path.split(path)
        names = self._of(folder)
        if not names:
            return f' (the folder {folder} is not there or is empty)'
        stem = os.path.splitext(name)[0].lower()
        like = next((other for other in sorted(names) if os.path.splitext(other)[0].lower() == stem), None)
        return f' ({like} is there)' if like else ''


def _sample(items: list, size: int | None) -> list:
    """Evenly chosen items; all of them for None."""
    if size is None or len(items) <= size:
        return items
    return [items[index * len(items) // size] for index in range(size)]


def _loads_stored(source: Source) -> bool:
    """True if the pipeline loads pixels as they are stored, whatever EXIF data say."""
    return any('ignore_orientation' in str(step.get('color_type')) or step.get('color_type') == 'unchanged'
               for step in steps_of(source.settings.get('pipeline')))


def _check_header(path: str, image: dict, loads_stored: bool, tally: Tally) -> None:
    try:
        with open_header(path) as picture:
            # Of a PNG without EXIF data in front Pillow would read all pixels to look behind them.
            has_exif = picture.format != 'PNG' or 'exif' in picture.info
            stored, orientation = picture.size, picture.getexif().get(ORIENTATION, 1) if has_exif else 1
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, UnidentifiedImageError) and cv2.haveImageReader(path):
            return  # a format that OpenCV knows and Pillow does not
        tally.add(rules.PICTURE_UNREADABLE, '{}: {}', path, error)
        return
    said = image['width'], image['height']
    sideways = orientation in SIDEWAYS
    loaded = stored[::-1] if sideways and not loads_stored else stored
    if said == loaded:
        if not loads_stored and orientation != 1 and (orientation in (2, 3, 4) or stored[0] == stored[1]):
            tally.add(rules.PICTURE_MAYBE_TURNED, '{}, EXIF orientation {}', path, orientation)
    elif sideways and not loads_stored and said == stored:
        tally.add(rules.PICTURE_TURNED, '{} is loaded as {}x{} px (EXIF orientation {}), the file says {}x{}', path,
                  *loaded, orientation, *said)
    else:
        tally.add(rules.PICTURE_SIZE, '{} is {}x{} px, the file says {}x{}{}', path, *loaded, *said,
                  f' (EXIF orientation {orientation}, loaded as stored)' if sideways else '')
