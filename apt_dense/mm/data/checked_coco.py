"""COCO annotations that are checked when they are read."""
import logging
import math
from collections import Counter

from mmengine.logging import print_log
from mmengine.registry import DATASETS

from apt_dense.extras import from_extra
from apt_dense.mm.errors import DataError
from apt_dense.mm.fault_tolerance.bad_data import check_policy

with from_extra('mm'):
    from mmdet.datasets import CocoDataset


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """``mmdet.CocoDataset`` that leaves out no annotation without a word.

    mmdetection drops boxes outside the image or without area, and categories that are not the dataset's.  It also
    shifts all labels where the file lacks one of the classes.

    Args:
        on_bad_annotation: 'raise', or 'skip': leave it out, and log how many there were of each kind.  Annotations of
            categories that the file defines and ``metainfo['classes']`` leaves out are not bad; the log counts them.
        args, kwargs: of ``mmdet.CocoDataset``.

    Raises:
        DataError: for a bad annotation, naming the file, the image and the annotation's id; for a class that the file
            does not define.
    """

    def __init__(self, *args, on_bad_annotation: str = 'raise', **kwargs):
        check_policy('on_bad_annotation', on_bad_annotation)
        self.on_bad_annotation = on_bad_annotation
        self._bad: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict]:
        """The images with their annotations; see the class."""
        self._file_categories: set[int] | None = None
        self._bad.clear()
        data_list = super().load_data_list()
        for kind, count in self._bad.items():
            print_log(f'{self.ann_file}: {count} annotations left out, {kind}; the first: {self._examples[kind]}',
                      logger='current', level=logging.WARNING)
        return data_list

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """One image's annotations, without the bad ones; see the class."""
        if self._file_categories is None:
            self._file_categories = set(self.coco.cats)
            names = {category['name'] for category in self.coco.cats.values()}
            missing = [name for name in self.metainfo['classes'] if name not in names]
            if missing:
                raise DataError(f'{self.ann_file} defines no category {missing}: metainfo.classes must be names of '
                                f'the file, {sorted(names)}')
        image = raw_data_info['raw_img_info']
        good = []
        for annotation in raw_data_info['raw_ann_info']:
            reason = self._reason(annotation, image)
            if reason is None or annotation.get('ignore'):
                good.append(annotation)
                continue
            kind, details = reason
            where = f'annotation {annotation.get("id")} of {image["file_name"]}, {details}'
            if self.on_bad_annotation == 'raise' and kind != 'of other classes':
                raise DataError(f"{self.ann_file}: {where}: {kind}. Correct it, or set on_bad_annotation='skip'")
            self._bad[kind] += 1
            self._examples.setdefault(kind, where)
        return super().parse_data_info({**raw_data_info, 'raw_ann_info': good})

    def _reason(self, annotation: dict, image: dict) -> tuple[str, str] | None:
        """Why mmdetection would leave an annotation out: (kind, details); None if it is good."""
        lacking = [key for key in ('category_id', 'bbox', 'area') if key not in annotation]
        if lacking:
            return 'incomplete', f'without {", ".join(lacking)}'
        box, category = annotation['bbox'], annotation['category_id']
        if category not in self._file_categories:
            return 'of categories that the file does not define', f'category_id {category}'
        if category not in self.cat_ids:
            return 'of other classes', f'category_id {category}'
        if not (isinstance(box, (list, tuple)) and len(box) == 4 and all(map(math.isfinite, box))):
            return 'with a box that is not four finite numbers', f'bbox {box}'
        x, y, width, height = box
        if width < 1 or height < 1 or annotation['area'] <= 0:
            return 'without area (a side below 1 px)', f'bbox {box}, area {annotation["area"]}'
        if min(x + width, image['width']) <= max(x, 0) or min(y + height, image['height']) <= max(y, 0):
            return 'outside the image', f'bbox {box} in {image["width"]}x{image["height"]} px'
        return None
