"""Checks of the COCO files of a config: what its datasets and metrics would make of them."""
import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from mmengine.config import Config

from apt_dense.extras import from_extra
from apt_dense.mm.data.checked_coco import CheckedCocoDataset, CheckedCocoMetric, wants_masks
from apt_dense.mm.data.coco_file import CocoFile
from apt_dense.mm.data.coco_survey import Survey, check_classes
from apt_dense.mm.preflight import coco_rules as rules
from apt_dense.mm.preflight.datasets import Source, annotation_file, datasets_of, is_remote, metrics_of
from apt_dense.mm.preflight.findings import MENDED, STOP, WARN, Finding, Rule
from apt_dense.mm.preflight.pictures import check_pictures

with from_extra('mm'):
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.api_wrappers import COCO
    from mmdet.evaluation import CocoMetric

ReadFile = Callable[[str], CocoFile]
MASKS_ONLY = (rules.FLAT_POLYGON, rules.THIN_POLYGONS, rules.THIN_FIRST)


def check_coco(cfg: Config, split: str, deep: str | None, read: ReadFile, counts: list[str]) -> Iterator[Finding]:
    """Check the COCO files and pictures of a split.

    Args:
        split: 'train', 'val' or 'test'.
        deep: None reads no pixels; 'sample' or 'all' of the pictures.
        read: reads a file, or has it already.
        counts: gets a line of numbers for each dataset.
    """
    sources = [source for source in datasets_of(cfg, split) if reads_coco(source)]
    surveys = []
    for source in sources:
        survey = yield from _check_dataset(source, split, deep, read, counts)
        surveys.append(survey)
    if split == 'train' and surveys and all(surveys) and not any(survey.num_objects for survey in surveys):
        if any(survey.num_crowds for survey in surveys):
            yield Finding(rules.ONLY_CROWDS, 'train dataset ' + ', '.join(survey.file.name for survey in surveys),
                          f'no single object, {sum(survey.num_crowds for survey in surveys)} crowds')
        else:
            yield Finding(rules.NO_IMAGE_LEFT, 'train dataset ' + ', '.join(survey.file.name for survey in surveys),
                          'has no object left: there is no annotation')
    for metric in metrics_of(cfg, split):
        if sources and metric.kind is not None and issubclass(metric.kind, CocoMetric) and (
                metric.settings.get('ann_file')):
            yield from _check_metric(metric, sources[0], read)


def reads_coco(source: Source) -> bool:
    """True for mmdetection's CocoDataset and those that read its files in its way."""
    return (source.kind is not None and issubclass(source.kind, CocoDataset) and bool(annotation_file(source)) and
            issubclass(source.kind.COCOAPI, COCO) and source.kind.load_data_list in (
                CocoDataset.load_data_list, CheckedCocoDataset.load_data_list))


def _check_dataset(source: Source, split: str, deep: str | None, read: ReadFile, counts: list[str]):
    """Yields findings; returns the survey, or None where it does not come to that."""
    settings, path = source.settings, annotation_file(source)
    if is_remote(settings, path):
        counts.append(f'{split}: {path} is not on this machine, passed over')
        return None
    if not os.path.isfile(path):
        yield _missing(f'{source.key}.ann_file', path)
        return None
    file = read(path)
    classes = source.kind._load_metainfo(copy.deepcopy(settings.get('metainfo'))).get('classes', ())
    masks = wants_masks(settings.get('pipeline') or ())
    checked = issubclass(source.kind, CheckedCocoDataset)
    yield from _as_read(file.findings(), source, checked, rules.BREAKS_DATASET, masks)
    if _stops(file.findings()):
        return None
    found = list(check_classes(file, classes))
    yield from _as_read(found, source, checked, rules.BREAKS_DATASET, masks)
    if not (file.images and file.categories):
        return None
    survey = Survey(file, _usable(file, classes, found), masks)
    harmless = rules.SCORED if settings.get('test_mode') else ()
    yield from _bad_annotations(survey, source, checked, harmless)
    filters = None if settings.get('test_mode') else settings.get('filter_cfg')
    lost = [] if _stops(found) else list(survey.emptiness(filters, f'{split} dataset'))
    yield from lost
    yield from survey.suspicions()
    counts.append(f'{split}: {path}: {len(file.images)} images, {len(survey.images_with_objects)} with objects; '
                  f'{survey.num_objects} objects of {sum(map(bool, survey.good.values()))} of {len(classes)} classes; '
                  f'{survey.describe_losses()}')
    yield from check_pictures(source, _loaded_images(survey, settings), deep, checked)
    return None if _stops((*found, *lost)) else survey


def _loaded_images(survey: Survey, settings: dict) -> list[dict]:
    """The images that the dataset will load."""
    filters = {} if settings.get('test_mode') else settings.get('filter_cfg') or {}
    return [image for image in survey.file.images
            if (not filters.get('filter_empty_gt') or image['id'] in survey.images_annotated) and
            min(image['width'], image['height']) >= filters.get('min_size', 0)]


def _check_metric(metric: Source, dataset: Source, read: ReadFile) -> Iterator[Finding]:
    settings, path = metric.settings, metric.settings['ann_file']
    if is_remote(settings, path):
        return
    if not os.path.isfile(path):
        yield _missing(f'{metric.key}.ann_file', path)
        return
    file = read(path)
    classes = dataset.kind._load_metainfo(copy.deepcopy(dataset.settings.get('metainfo'))).get('classes', ())
    wanted = settings.get('metric', 'bbox')
    masks = 'segm' in ([wanted] if isinstance(wanted, str) else wanted)
    checked = issubclass(metric.kind, CheckedCocoMetric)
    yield from _as_read(file.findings(), metric, checked, rules.BREAKS_METRIC, masks)
    if _stops(file.findings()):
        return
    found = list(check_classes(file, classes))
    yield from _as_read(found, metric, checked, rules.BREAKS_METRIC, masks)
    if not (file.images and file.categories):
        return
    survey = Survey(file, _usable(file, classes, found), masks, scored=True)
    yield from _bad_annotations(survey, metric, checked)
    if not survey.num_objects and not settings.get('format_only'):
        yield Finding(rules.NOTHING_TO_SCORE, f'{metric.key}.ann_file', f'{path} has no object to compare with: '
                                                                        f'{survey.describe_losses()}')


def _missing(key: str, path: str) -> Finding:
    folder = os.path.isdir(path)
    return Finding(rules.FILE_MISSING, key, f'{path} is a folder, wanted a file in it' if folder else (
        f'{path} does not exist'))


def _stops(found: Iterable[Finding]) -> bool:
    return any(finding.rule.severity == STOP for finding in found)


def _usable(file: CocoFile, classes: Sequence[str], found: Iterable[Finding]) -> Sequence[str]:
    """The classes to look at: those of the file where the config's do not fit, so that the rest is found at once."""
    return [category['name'] for category in file.categories] if _stops(found) else classes


def _as_read(found: Iterable[Finding], source: Source, checked: bool, breaks: frozenset[Rule],
             masks: bool) -> Iterator[Finding]:
    """Findings as the class of the config would have them: mmdetection's own mends nothing."""
    for finding in found:
        if finding.rule.severity != MENDED or checked:
            yield finding
        elif finding.rule in breaks and (masks or finding.rule not in MASKS_ONLY):
            yield Finding(rules.UNMENDED, finding.where, f'{finding.got}; {source.key}.type={source.kind.__name__} '
                                                         f'does not mend it ({finding.rule.name})', finding.count)


def _bad_annotations(survey: Survey, source: Source, checked: bool, harmless: Iterable[Rule] = ()) -> Iterator[Finding]:
    policy = source.settings.get('on_bad_annotation', 'raise')
    for finding in survey.bad.findings():
        rule = finding.rule
        if rule is rules.OTHER_CLASS:
            continue
        left_out = rule in harmless or (policy == 'skip' if checked else rule not in rules.UNUSABLE)
        if left_out:
            rule = replace(rule, severity=WARN, remedy='Left out')
        elif not checked:
            rule = replace(rule, remedy=f"Correct it, or set {source.key}.type='Checked{source.kind.__name__}', "
                                        "on_bad_annotation='skip'")
        yield replace(finding, rule=rule, got=f'annotations {finding.got}')

