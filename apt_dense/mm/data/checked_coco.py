"""COCO's truth, checked and mended when it is read: one dataset and one metric, which see the same."""
import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any

from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from mmengine.registry import DATASETS, METRICS

from apt_dense.extras import from_extra
from apt_dense.mm.data.coco_file import CocoFile
from apt_dense.mm.data.coco_survey import Survey, check_classes
from apt_dense.mm.errors import DataError
from apt_dense.mm.fault_tolerance.bad_data import check_policy
from apt_dense.mm.preflight import coco_rules
from apt_dense.mm.preflight.findings import MENDED, Finding, Rule, raise_if_stopped

with from_extra('mm'):
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.api_wrappers import COCO
    from mmdet.evaluation import CocoMetric


class MendedCOCO(COCO):
    """pycocotools' index over a mended file.

    Deviation from ``mmdet``'s: ``get_cat_ids`` returns ids in the order of the names that it is given, so that label i
    is class i.

    Args:
        path: where the file is on this machine.

    Raises:
        PreflightError: with everything that makes the file unusable.
    """

    def __init__(self, path: str | None = None):
        super().__init__()
        self.file = CocoFile(path)
        self.file.raise_if_unusable()
        self.index(self.file.annotations)

    def index(self, annotations: list[dict]) -> None:
        """Index these annotations, with all images and categories."""
        self.dataset = {**self.file.content, 'annotations': [
            annotation for annotation in annotations if 'image_id' in annotation and 'category_id' in annotation]}
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def get_cat_ids(self, cat_names: Any = (), sup_names: Any = (), cat_ids: Any = ()) -> list:
        """Ids of categories: of one name after the other where names are given."""
        if len(cat_names) == 0 or len(sup_names) or len(cat_ids):
            return super().get_cat_ids(cat_names, sup_names, cat_ids)
        raise_if_stopped(check_classes(self.file, cat_names))
        ids = {category['name']: category['id'] for category in self.file.categories}
        return [ids[name] for name in cat_names]


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """``mmdet.CocoDataset`` of a file that is checked, mended, and in the order of ``metainfo['classes']``.

    mmdetection drops boxes outside the image or without area, and categories that are not the dataset's, without a
    word.  It numbers labels in the file's order, and shifts them where the file lacks one of the classes.

    Args:
        on_bad_annotation: 'raise', or 'skip': leave it out, and log how many there were of each kind.  Annotations of
            categories that the file defines and ``metainfo['classes']`` leaves out are not bad, nor in a test (where
            they are scored) those without area or outside the image; the log counts them.
        args, kwargs: of ``mmdet.CocoDataset``.

    Raises:
        DataError: for a bad annotation, naming the file, the image and the annotation's id; for a class that the file
            does not define; where no image, no object, or nothing of a class is left.
    """

    COCOAPI = MendedCOCO

    def __init__(self, *args, on_bad_annotation: str = 'raise', **kwargs):
        check_policy('on_bad_annotation', on_bad_annotation)
        self.on_bad_annotation = on_bad_annotation
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict]:
        """The images with their annotations; see the class."""
        self._survey: Survey | None = None
        self._num_backslashes = 0
        data_list = super().load_data_list()
        _log_mended(self._survey.file, check_classes(self._survey.file, self.metainfo['classes']))
        if self._num_backslashes:
            print_log(f'{self.ann_file}: {self._num_backslashes} {coco_rules.BACKSLASHES.finds}: '
                      f'{coco_rules.BACKSLASHES.remedy}', logger='current', level=logging.WARNING)
        return data_list

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """One image's annotations, without the bad ones; see the class."""
        if self._survey is None:
            self.coco.file.name = self.ann_file
            self._survey = Survey(self.coco.file, self.metainfo['classes'], wants_masks(self.pipeline.transforms))
            apply_policy(self._survey, self.on_bad_annotation, coco_rules.SCORED if self.test_mode else ())
        image = raw_data_info['raw_img_info']
        name = image['file_name']
        if '\\' in name and self.backend_args is None:
            mended = mended_name(self.data_prefix.get('img') or '', name)
            self._num_backslashes += mended != name
            image = {**image, 'file_name': mended}
        good = [annotation for annotation in raw_data_info['raw_ann_info']
                if annotation['id'] not in self._survey.bad_ids]
        return super().parse_data_info({'raw_img_info': image, 'raw_ann_info': good})

    def filter_data(self) -> list[dict]:
        """The images that ``filter_cfg`` leaves; see the class."""
        survey, self._survey = self._survey, None  # the annotations are no longer needed
        raise_if_stopped(survey.emptiness(None if self.test_mode else self.filter_cfg))
        return super().filter_data()


@METRICS.register_module()
class CheckedCocoMetric(CocoMetric):
    """``mmdet.CocoMetric`` against the same mended truth as ``CheckedCocoDataset``'s.

    Label i is class i in scores, the table by class and the files for a submission, whatever the order and the ids of
    the file's categories.

    Args:
        ann_file: the COCO file; None takes the truth from the dataset.
        args: of ``mmdet.CocoMetric``, after ``ann_file``.
        on_bad_annotation: 'raise', or 'skip': leave annotations that cannot be scored out of the truth, and log how
            many of each kind: incomplete ones, boxes that are not finite, with ``metric='segm'`` those without a proper
            mask.  (Those without area, or outside the image, are scored as COCO does.)
        kwargs: of ``mmdet.CocoMetric``.

    Raises:
        DataError: when the dataset's classes become known, for such an annotation, or a class that the file lacks.
    """

    def __init__(self, ann_file: str | None = None, *args, on_bad_annotation: str = 'raise', **kwargs):
        check_policy('on_bad_annotation', on_bad_annotation)
        super().__init__(None, *args, **kwargs)
        self.ann_file, self.on_bad_annotation = ann_file, on_bad_annotation
        self._ids_of_labels: list | None = None
        if ann_file is not None:
            with get_local_path(ann_file, backend_args=self.backend_args) as path:
                self._coco_api = MendedCOCO(path)
            self._coco_api.file.name = ann_file

    @CocoMetric.dataset_meta.setter
    def dataset_meta(self, dataset_meta: dict) -> None:
        """The dataset's metainfo; its classes say which annotations count."""
        self._dataset_meta = dataset_meta
        if self.ann_file is None or 'classes' not in (dataset_meta or {}):
            return
        classes, file = dataset_meta['classes'], self._coco_api.file
        self._ids_of_labels = self._coco_api.get_cat_ids(cat_names=classes)
        survey = Survey(file, classes, masks='segm' in self.metrics, scored=True)
        apply_policy(survey, self.on_bad_annotation)
        self._coco_api.index([annotation for annotation in file.annotations if annotation['id'] not in survey.bad_ids])
        self.cat_ids = sorted(self._ids_of_labels)  # pycocotools' tables are in this order

    def results2json(self, results: list[dict], outfile_prefix: str) -> dict:
        """Write the predictions with the file's category ids; see ``mmdet.CocoMetric``."""
        if self._ids_of_labels is None:
            return super().results2json(results, outfile_prefix)
        in_order, self.cat_ids = self.cat_ids, self._ids_of_labels
        try:
            return super().results2json(results, outfile_prefix)
        finally:
            self.cat_ids = in_order


def wants_masks(transforms: Iterable) -> bool:
    """True if a pipeline's transforms, built or not, load masks; inside others too."""
    for step in transforms:
        get = step.get if isinstance(step, dict) else lambda name, step=step: getattr(step, name, None)
        inner = get('transforms') or getattr(get('pipeline'), 'transforms', None) or ()
        if get('with_mask') or wants_masks(item for item in _flat(inner) if item is not None):
            return True
    return False


def _flat(items: Any) -> Iterator:
    """Transforms, also of lists of lists as TestTimeAug has them."""
    for item in getattr(items, 'transforms', items):
        if isinstance(item, (list, tuple)):
            yield from _flat(item)
        else:
            yield item


def mended_name(folder: str, name: str) -> str:
    """A file name with slashes, if only that is there."""
    slashed = name.replace('\\', '/')
    there = not os.path.exists(os.path.join(folder, name)) and os.path.exists(os.path.join(folder, slashed))
    return slashed if there else name


def apply_policy(survey: Survey, policy: str, harmless: Iterable[Rule] = ()) -> None:
    """Raise for bad annotations, or log how many are left out.

    Args:
        policy: 'raise' or 'skip'.
        harmless: kinds that are left out in either case.

    Raises:
        DataError: naming the first of each kind.
    """
    harmless = (coco_rules.OTHER_CLASS, *harmless)
    kinds = [(rule, count, survey.bad.examples[rule]) for rule, count in survey.bad.counts.items()]
    bad = [kind for kind in kinds if kind[0] not in harmless]
    if bad and policy == 'raise':
        raise DataError('\n'.join(f'{survey.file.name}: {example}: {rule.finds}. {rule.remedy} ({count} of this kind)'
                                  for rule, count, example in bad))
    for rule, count, example in kinds:
        print_log(f'{survey.file.name}: {count} annotations left out, {rule.finds}; the first: {example}',
                  logger='current', level=logging.WARNING)


def _log_mended(file: CocoFile, more: Iterable[Finding]) -> None:
    for finding in (*file.findings(), *more):
        if finding.rule.severity == MENDED:
            print_log(str(finding), logger='current', level=logging.WARNING)
