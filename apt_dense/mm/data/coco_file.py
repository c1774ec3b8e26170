"""A COCO file, read once for all who want its truth: checked, and mended where the right value is beyond doubt."""
import math
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from apt_dense.mm.data import coco_masks
from apt_dense.mm.data.json_stream import LIST, NotAnObjectError, read_sections
from apt_dense.mm.errors import DataError
from apt_dense.mm.preflight import coco_rules as rules
from apt_dense.mm.preflight.findings import STOP, Finding, PreflightError
from apt_dense.mm.preflight.tally import Tally

SECTIONS = ('images', 'annotations', 'categories')
CHECKED_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd', 'ignore', 'segmentation',
                'unreadable')
FLAGS = {0: 0, 1: 1, '0': 0, '1': 1, 'false': 0, 'true': 1, 'False': 0, 'True': 1, None: 0, '': 0}


class CocoFile:
    """Images, annotations and categories of a COCO file.

    The lists hold the file's own dictionaries, in its order.  After mending the ids of annotations are whole numbers,
    each once, and not 0; an annotation's ``image_id`` and ``category_id`` are of the type of what they mean;
    ``iscrowd`` is 0 or 1, and ``area`` is there if it can be known.  Images' ids are text or numbers, as in the file.

    Args:
        path: the file.
        name: what messages call it.
        keep_masks: False puts a ``coco_masks.Mask`` in the place of each segmentation, and keeps no other keys than
            those that are checked: train2017 then takes a third of the memory.
        on_progress: is told how many bytes were read since it was last called.

    Attributes:
        has_annotations: False for a file that does not list any, such as that of a test server.
        tally: what is wrong and what was mended, by rule.
    """

    def __init__(self, path: str, name: str | None = None, keep_masks: bool = True,
                 on_progress: Callable[[int], None] = lambda num_bytes: None):
        self.name = name or path
        self.tally = Tally(self.name)
        self._failures: list[Finding] = []
        self.content: dict[str, Any] = {}
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.categories: list[dict] = []
        self.has_annotations = False
        self.images_by_id: dict[Any, dict] = {}
        try:
            self._read(path, keep_masks, on_progress)
        except NotAnObjectError as error:
            self._failures.append(Finding(rules.NOT_AN_OBJECT, self.name, str(error)))
        except (DataError, OSError) as error:
            self._failures.append(Finding(rules.UNREADABLE, self.name, str(error)))
        else:
            self._check_images()
            self._check_categories()
            self._mend_ids()

    def findings(self) -> list[Finding]:
        """What the file is lacking and what was mended."""
        return [*self._failures, *self.tally.findings()]

    def raise_if_unusable(self) -> None:
        """Raise PreflightError if nothing can be made of the file, with all reasons."""
        stops = [str(finding) for finding in self.findings() if finding.rule.severity == STOP]
        if stops:
            raise PreflightError('\n'.join(stops))

    def _read(self, path: str, keep_masks: bool, on_progress: Callable[[int], None]) -> None:
        with open(path, 'rb') as file:
            if file.read(3) == b'\xef\xbb\xbf':
                self.tally.add(rules.BYTE_ORDER_MARK, 'the file begins with one')
        for key, item in read_sections(path, on_progress):
            if key not in SECTIONS:
                if item is LIST:
                    self.content[key] = []
                elif isinstance(self.content.get(key), list):
                    self.content[key].append(item)
                else:
                    self.content[key] = item
            elif item is LIST:
                self.content[key] = getattr(self, key)
            elif type(item) is not dict or key not in self.content:
                self.tally.add(rules.MISSING_SECTION, '{} holds {}, not objects', key, type(item).__name__)
            elif key == 'annotations':
                self.annotations.append(self._mend_annotation(item, keep_masks))
            else:
                self.content[key].append(item)
        self.has_annotations = 'annotations' in self.content
        for key in ('images', 'categories'):
            if key not in self.content and rules.MISSING_SECTION not in self.tally.counts:
                self.tally.add(rules.MISSING_SECTION, 'no {}; its keys are {}', key, sorted(self.content))

    # ---- images ----
    def _check_images(self) -> None:
        kept = []
        for image in self.images:
            image['id'] = as_id(image.get('id'))
            for side in ('width', 'height'):
                length = as_int(image.get(side))
                if length is not None and type(image[side]) is str:
                    self.tally.add(rules.SIZE_AS_TEXT, 'image {}, {}: {!r}', image['id'], side, image[side])
                image[side] = image.get(side) if length is None else length
            problem = _image_problem(image)
            if problem:
                self.tally.add(rules.BAD_IMAGE, 'image {}, {}', image['id'], problem)
                continue
            other = self.images_by_id.setdefault(image['id'], image)
            if other is image:
                kept.append(image)
            elif other == image:
                self.tally.add(rules.REPEATED_IMAGES, 'id {}, {}', image['id'], image['file_name'])
            else:
                self.tally.add(rules.DUPLICATE_IMAGES, 'id {}, {} and {}', image['id'], other['file_name'],
                               image['file_name'])
        self.images[:] = kept

    # ---- categories ----
    def _check_categories(self) -> None:
        kept: dict[Any, dict] = {}
        for category in self.categories:
            category['id'] = as_id(category.get('id'))
            if category['id'] is None or not isinstance(category.get('name'), str):
                self.tally.add(rules.BAD_CATEGORY, '{}', category)
                continue
            other = kept.setdefault(category['id'], category)
            if other['name'] != category['name']:
                self.tally.add(rules.DUPLICATE_CATEGORIES, 'id {}, {!r} and {!r}', category['id'], other['name'],
                               category['name'])
            elif other is not category:
                self.tally.add(rules.SPARE_CATEGORIES, 'id {}, {!r}', category['id'], category['name'])
        self.categories[:] = kept.values()

    def _drop_spare_categories(self, used: Counter) -> None:
        """Of categories of one name keep the one that has annotations: exporters add a super-category of that name."""
        by_name: dict[str, list[dict]] = {}
        for category in self.categories:
            by_name.setdefault(category['name'], []).append(category)
        kept = []
        for name, same in by_name.items():
            busy = [category for category in same if used[category['id']]] or same[-1:]
            if len(busy) == 1 < len(same):  # of more than one with annotations nobody knows which is meant
                self.tally.add(rules.SPARE_CATEGORIES, '{!r} has the ids {}, kept: {}', name,
                               [item['id'] for item in same], busy[0]['id'])
            kept += busy
        self.categories[:] = kept

    # ---- annotations ----
    def _mend_annotation(self, annotation: dict, keep_masks: bool) -> dict:
        """What can be mended without knowing of the rest; makes the keys one object for all annotations."""
        tally = self.tally
        flag = annotation.get('iscrowd')
        if type(flag) is not int or flag not in (0, 1):
            try:
                annotation['iscrowd'] = FLAGS[flag]
            except (KeyError, TypeError):
                _set_aside(annotation, 'iscrowd')  # nobody knows what it means
            else:
                if flag is None or type(flag) is str:  # True and 1.0 are 1 for everybody
                    tally.add(rules.ISCROWD if flag is None else rules.ISCROWD_TEXT, 'annotation {}, {!r}',
                              annotation.get('id'), flag)
        segmentation = given = annotation.get('segmentation')
        if type(segmentation) is list and segmentation:
            segmentation = annotation['segmentation'] = self._mend_polygons(segmentation, annotation)
        if given is not None and not segmentation:
            annotation.setdefault('unreadable', {})['segmentation'] = given
        if type(annotation.get('area')) not in (int, float):
            area = coco_masks.area_of(segmentation)
            if area is None:
                area = _box_area(annotation.get('bbox'))
            if area is None:
                _set_aside(annotation, 'area')
            else:
                tally.add(rules.AREA, 'annotation {}', annotation.get('id'))
                annotation['area'] = area
        if keep_masks:
            return {sys.intern(key): value for key, value in annotation.items()}
        annotation['segmentation'] = coco_masks.describe(segmentation)
        return {key: annotation[key] for key in CHECKED_KEYS if key in annotation}

    def _mend_polygons(self, polygons: list, annotation: dict) -> list:
        if len(polygons) >= 6 and len(polygons) % 2 == 0 and all(type(item) in (int, float) for item in polygons):
            self.tally.add(rules.FLAT_POLYGON, 'annotation {}', annotation.get('id'))
            return [polygons]
        thin = [type(polygon) is list and len(polygon) in (0, 2, 4) for polygon in polygons]
        if not any(thin):
            return polygons
        kept = [polygon for polygon, is_thin in zip(polygons, thin, strict=True) if not is_thin]
        if kept:
            self.tally.add(rules.THIN_FIRST if thin[0] else rules.THIN_POLYGONS, 'annotation {}', annotation.get('id'))
        return kept

    def _mend_ids(self) -> None:
        """Match the ids of images and categories, drop what is listed twice, number annotations anew where needed."""
        image_ids, category_ids = set(self.images_by_id), {category['id'] for category in self.categories}
        used: Counter = Counter()
        seen: dict[int, dict] = {}
        kept, unnumbered = [], []
        for annotation in self.annotations:
            self._match(annotation, 'image_id', image_ids)
            self._match(annotation, 'category_id', category_ids)
            number = as_id(annotation.get('id'))
            if number is None:
                unnumbered.append((rules.ANNOTATION_IDS, annotation))
            elif number == 0 or type(number) is str:
                unnumbered.append((rules.UNSCORED_IDS, annotation))
            elif number not in seen:
                seen[number] = annotation
                annotation['id'] = number
            elif seen[number] == annotation:
                self.tally.add(rules.REPEATED_ANNOTATIONS, 'annotation {}', number)
                continue
            else:
                unnumbered.append((rules.ANNOTATION_IDS, annotation))
            used[annotation.get('category_id')] += 1
            kept.append(annotation)
        for number, (rule, annotation) in enumerate(unnumbered, start=max(0, max(seen, default=0)) + 1):
            self.tally.add(rule, 'id {!r} of image {} becomes {}', annotation.get('id'),
                           annotation.get('image_id'), number)
            annotation['id'] = number
        self.annotations[:] = kept
        self._drop_spare_categories(used)

    def _match(self, annotation: dict, key: str, known: set) -> None:
        value = annotation.get(key)
        if type(value) is int and value in known:
            return
        matched = as_id(value)
        if matched is None:
            _set_aside(annotation, key)
            return
        if matched not in known:
            number = as_int(matched)
            matched = next((other for other in (number, str(matched)) if other is not None and other in known), matched)
        if matched != value:  # 3.0 is 3 for everybody
            self.tally.add(rules.ID_TYPES, 'annotation {}, {} {!r} is {!r}', annotation.get('id'), key, value, matched)
        annotation[key] = matched


def _set_aside(annotation: dict, key: str) -> None:
    """Take out a value that cannot be read, and keep it for messages."""
    if key in annotation:
        annotation.setdefault('unreadable', {})[key] = annotation.pop(key)


def as_id(value: Any) -> int | str | None:
    """An id as a whole number or text; None if it is neither."""
    if type(value) is int or (type(value) is str and value):
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    return None


def as_int(value: Any) -> int | None:
    """A whole number, also one that is text or a fraction of .0; None if it is none."""
    try:
        number = float(value) if type(value) in (int, float, str) else math.nan
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _image_problem(image: dict) -> str:
    if image['id'] is None:
        return f'{image.get("file_name")}: without an id that is a number or text'
    if not isinstance(image.get('file_name'), str) or not image['file_name']:
        return 'without file_name'
    for side in ('width', 'height'):
        if type(image.get(side)) is not int or image[side] < 1:
            return f'{image["file_name"]}: {side} {image.get(side, "is missing")}'
    return ''


def _box_area(box: Any) -> float | None:
    if isinstance(box, list) and len(box) == 4 and all(type(item) in (int, float) for item in box):
        return float(box[2] * box[3])
    return None
