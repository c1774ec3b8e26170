"""Which annotations of a COCO file are bad, and what is left of it for one dataset or one evaluation."""
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from typing import Any

from apt_dense.mm.data import coco_masks
from apt_dense.mm.data.box_survey import BoxSurvey
from apt_dense.mm.data.coco_file import CocoFile
from apt_dense.mm.preflight import coco_rules as rules
from apt_dense.mm.preflight.findings import Finding, Rule
from apt_dense.mm.preflight.tally import Tally

NEARLY = 0.1  # less than this share of the images or annotations left is worth a warning
NUMBERS = (int, float)
WANTED = dict(iscrowd=', wanted 0 or 1', image_id=', wanted a number or text', category_id=', wanted a number or text',
              area=', wanted a number')


def check_classes(file: CocoFile, classes: Any) -> Iterator[Finding]:
    """What does not fit between a file's categories and ``metainfo.classes``; that there are some, and images."""
    def finding(rule: Rule, got: str, count: int = 1) -> Finding:
        return Finding(rule, file.name, got, count)

    for key in ('images', 'categories'):
        if not getattr(file, key):
            yield finding(rules.EMPTY_SECTION, f'{key} is an empty list')
    if isinstance(classes, str):
        yield finding(rules.CLASSES_TEXT, f'metainfo.classes is the text {classes!r}')
        return
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        yield finding(rules.DUPLICATE_CLASSES, f'metainfo.classes has {twice} more than once', len(twice))
    names = [category['name'] for category in file.categories]
    missing = [name for name in classes if name not in names]
    alike = {_plain(name): name for name in names}
    pairs = {name: alike[_plain(name)] for name in missing if _plain(name) in alike}
    if pairs:
        said = ', '.join(f'{name!r} is {other!r} in the file' for name, other in pairs.items())
        yield finding(rules.CLASS_SPELLING, f'the file defines no category {list(pairs)} of metainfo.classes, but for '
                                            f'case or spaces: {said}', len(pairs))
    lacking = [name for name in missing if name not in pairs]
    if lacking:
        yield Finding(rules.MISSING_CLASS, f'{file.name} defines no category {lacking}',
                      f'metainfo.classes must be names of the file, {sorted(names)}', len(lacking))
    for name in [name for name, count in Counter(names).items() if count > 1 and name in classes]:
        ids = [category['id'] for category in file.categories if category['name'] == name]
        yield finding(rules.DUPLICATE_CATEGORIES, f'name {name!r}, ids {ids}, with annotations each', len(ids))
        missing.append(name)  # there is no order to speak of
    order = [name for name in names if name in set(classes)]
    if not missing and not twice and order != list(classes):
        first = next(index for index, name in enumerate(classes) if name != order[index])
        yield finding(rules.CATEGORY_ORDER, f'the file has {order[first]!r} where metainfo.classes has '
                                            f'{classes[first]!r} (class {first})')


def _plain(name: Any) -> str:
    return ''.join(character for character in str(name).casefold() if character.isalnum())


class Survey:
    """What each annotation of a file is worth, for certain classes.

    Args:
        file: that can be used.
        classes: names of its categories; others are left out on purpose.
        masks: True if masks are wanted: an annotation without a proper one is bad.
        scored: True for an evaluation, which can use all but ``coco_rules.UNUSABLE``.

    Attributes:
        bad: the bad annotations by rule, with the first of each.
        bad_ids: their ids, and those of other classes.
        seen, good: numbers of annotations, and of good ones, by category id; crowds among them.
        num_objects, num_crowds: of the good ones.
        images_with_objects: ids of images with a good annotation, crowds too.
    """

    def __init__(self, file: CocoFile, classes: Sequence[str], masks: bool, scored: bool = False):
        self.file, self.classes, self.masks, self.scored = file, list(classes), masks, scored
        self.categories = {category['id']: category['name'] for category in file.categories}
        self.wanted = {number for number, name in self.categories.items() if name in set(classes)}
        self.bad = Tally(file.name)
        self.bad_ids: set[int] = set()
        self.seen: Counter[Any] = Counter()
        self.good: Counter[Any] = Counter()
        self.num_objects = self.num_crowds = 0
        self.images_with_objects: set = set()
        self.images_annotated: set = set()
        self._boxes = BoxSurvey()
        self._beside = Tally(file.name)
        for annotation in file.annotations:
            if not annotation.get('ignore'):
                self._look_at(annotation)

    def _look_at(self, annotation: dict) -> None:
        image = self.file.images_by_id.get(annotation.get('image_id'))
        problem = self._problem(annotation, image)
        if image is not None and annotation.get('category_id') in self.wanted:
            self.seen[annotation['category_id']] += 1
            self.images_annotated.add(image['id'])
            if _is_box(annotation.get('bbox')):
                self._boxes.add(annotation['bbox'], image)
        if problem is None or (self.scored and problem[0] not in rules.UNUSABLE):
            if image is not None and annotation.get('category_id') in self.wanted:
                self.good[annotation['category_id']] += 1
                self.images_with_objects.add(image['id'])
                self.num_crowds += annotation['iscrowd']
                self.num_objects += 1 - annotation['iscrowd']
            return
        rule, details = problem
        self.bad_ids.add(annotation['id'])
        name = image['file_name'] if image else f'image {annotation.get("image_id")}'
        self.bad.add(rule, 'annotation {} of {}, {}', annotation['id'], name, details)

    def _problem(self, annotation: dict, image: dict | None) -> tuple[Rule, str] | None:
        """Why mmdetection would leave an annotation out or fail on it: (rule, details); None if it is good."""
        lacking = _lacking(annotation, ('image_id', 'category_id'))
        if lacking:
            return lacking
        if image is None:
            return rules.UNKNOWN_IMAGE, f'image_id {annotation["image_id"]!r}'
        category = annotation['category_id']
        if category not in self.categories:
            return rules.UNKNOWN_CATEGORY, f'category_id {category!r}'
        if category not in self.wanted:
            return rules.OTHER_CLASS, f'category_id {category!r}'
        lacking = _lacking(annotation, ('bbox', 'area', 'iscrowd'))
        if lacking:
            return lacking
        box = annotation['bbox']
        if not _is_box(box):
            return rules.BOX_NOT_FINITE, f'bbox {box}'
        mask = self._mask_problem(annotation, image) if self.masks else None
        if mask is not None:
            return mask
        x, y, width, height = box
        if width < 1 or height < 1 or not annotation['area'] > 0:
            return rules.NO_AREA, f'bbox {box}, area {annotation["area"]}'
        if min(x + width, image['width']) <= max(x, 0) or min(y + height, image['height']) <= max(y, 0):
            return rules.OUTSIDE, f'bbox {box} in {image["width"]}x{image["height"]} px'
        return None

    def _mask_problem(self, annotation: dict, image: dict) -> tuple[Rule, str] | None:
        mask = coco_masks.describe(annotation.get('segmentation'))
        if mask is None:
            given = annotation.get('unreadable', {}).get('segmentation')
            return rules.NO_MASK, 'segmentation is missing' if given is None else f'segmentation is {str(given)[:60]}'
        if mask.size not in (None, (image['height'], image['width'])):
            return rules.MASK_SIZE, (f'a mask of {mask.size[1]}x{mask.size[0]} px in an image of {image["width"]}x'
                                     f'{image["height"]} px')
        if mask.problem:
            return rules.BAD_MASK, mask.problem
        if mask.bounds is not None and _apart(mask.bounds, annotation['bbox']):
            self._beside.add(rules.BOX_BESIDE_MASK, 'annotation {}, bbox {}, polygons from {} to {}', annotation['id'],
                             annotation['bbox'], mask.bounds[:2], mask.bounds[2:])
        return None

    # ---- what is left ----
    def describe_losses(self) -> str:
        """Numbers of annotations by what is wrong with them."""
        parts = [f'{count} {rule.finds}' for rule, count in self.bad.counts.items()]
        if self.num_crowds:
            parts.append(f'{self.num_crowds} crowds')
        return f'{len(self.file.annotations)} annotations' + (f', of them {", ".join(parts)}' if parts else '')

    def emptiness(self, filter_cfg: dict | None, name: str = 'dataset') -> Iterator[Finding]:
        """Images, objects and classes that are lost: none of it may happen below an error.

        Args:
            filter_cfg: the dataset's, ``filter_empty_gt`` and ``min_size``; None for a test, which filters nothing.
            name: 'train dataset', for messages.
        """
        images, filters = self.file.images, filter_cfg or {}
        min_size = filters.get('min_size', 0)
        small = sum(min(image['width'], image['height']) < min_size for image in images)
        empty = bool(filters.get('filter_empty_gt'))
        without = sum(image['id'] not in self.images_with_objects for image in images)
        # As mmdetection: an image counts as annotated by what its annotations say, good or bad.
        num_left = sum(min(image['width'], image['height']) >= min_size and
                       (not empty or image['id'] in self.images_annotated) for image in images)
        numbers = f'{len(images)} images, {without} without objects' + (
            f', {small} smaller than min_size={min_size}' if small else '') + f'; {self.describe_losses()}'
        if num_left == 0 or (self.images_annotated and not self.images_with_objects):
            lost = 'image' if num_left == 0 or empty else 'object'
            yield Finding(rules.NO_IMAGE_LEFT, f'{name} {self.file.name} has no {lost} left', numbers)
            return
        lost = [self.categories[number] for number in self.seen if not self.good[number]]
        if lost:
            yield Finding(rules.CLASS_LOST, f'{name} {self.file.name}', f'no good annotation is left of the classes '
                                                                        f'{lost}: {numbers}', len(lost))
        num_good = self.num_objects + self.num_crowds
        if num_left < NEARLY * len(images) or num_good < NEARLY * sum(self.seen.values()):
            yield Finding(rules.NEARLY_EMPTY, f'{name} {self.file.name}',
                          f'{num_left} images and {num_good} annotations are left: {numbers}')

    def suspicions(self) -> Iterator[Finding]:
        """What is suspicious in the annotations as a whole."""
        yield from self._boxes.suspicions(self.file.name)
        yield from self._beside.findings()
        empty = [self.categories[number] for number in self.wanted if not self.seen[number]]
        if empty and self.file.has_annotations and self.file.annotations:
            yield Finding(rules.CLASS_WITHOUT_OBJECTS, self.file.name, f'no annotation of {sorted(empty)[:10]}',
                          len(empty))
        names = Counter(image['file_name'] for image in self.file.images)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            yield Finding(rules.ONE_FILE_TWO_IDS, self.file.name, f'{twice[0]} is listed under {names[twice[0]]} ids',
                          len(twice))


def _lacking(annotation: dict, keys: Sequence[str]) -> tuple[Rule, str] | None:
    lacking = [key for key in keys if key not in annotation]
    if not lacking:
        return None
    given = annotation.get('unreadable', {})
    said = [f'{key} is {given[key]!r}{WANTED.get(key, "")}' for key in lacking if key in given]
    absent = [key for key in lacking if key not in given]
    return rules.INCOMPLETE, ', '.join([*said, *([f'without {", ".join(absent)}'] if absent else [])])


def _is_box(box: Any) -> bool:
    if type(box) is not list or len(box) != 4:
        return False
    return all(type(item) in NUMBERS and isfinite(item) for item in box)


def _apart(bounds: Iterable[float], box: Sequence[float]) -> bool:
    """True if box and extent do not touch, more than a pixel apart."""
    left, top, right, bottom = bounds
    x, y, width, height = box
    return left > x + width + 1 or right < x - 1 or top > y + height + 1 or bottom < y - 1
