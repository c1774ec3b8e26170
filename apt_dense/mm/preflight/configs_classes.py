"""Numbers and names of classes: those of the datasets, of every head, of the label maps, of the metrics."""
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS

from apt_dense.mm.preflight.findings import STOP, WARN, Finding, Rule
from apt_dense.mm.preflight.keywords import default_of
from apt_dense.mm.preflight.parts import Part, class_of, kind_of, leaf_datasets, listed, metrics_of, steps_of

COUNTS = Rule(
    'class-counts-differ', STOP, 'a head, label map or metric with another number of classes than the dataset',
    'Set both to the same number: one for each name in metainfo.classes')
TWICE = Rule('class-twice', STOP, 'a name that stands twice in metainfo.classes', 'Give each class a name of its own')
CAPITALS = Rule(
    'metainfo-in-capitals', STOP, "metainfo's CLASSES or PALETTE, which nobody reads: the dataset type's own are taken",
    'Write classes and palette in small letters')
PALETTE = Rule(
    'palette-length', STOP, 'a palette with another number of colours than there are classes',
    'Give one colour for each class, or no palette')
ORDER = Rule(
    'classes-in-another-order', STOP, 'the same classes in another order in validation or testing than in training',
    'Label i is the i-th class: give every split the same metainfo.classes')
NAMES = Rule(
    'classes-named-otherwise', WARN, 'classes that are named otherwise in validation or testing than in training',
    'Label i is the i-th class, whatever its name: make sure that it is the same one')
REDUCE = Rule(
    'reduce-zero-label-differs', STOP, 'reduce_zero_label that is not the same for all splits of one dataset',
    'Ids of one split would be lower by one: set the same for both')
ONE_CHANNEL = Rule(
    'one-channel-softmax', STOP, 'a softmax over one channel, which is always 1: the loss is 0 and nothing is learnt',
    'For one class and background: two classes in metainfo.classes and num_classes=2; or out_channels=1 with '
    'loss_decode.use_sigmoid=True')
UNNAMED = Rule(
    'no-classes', STOP, 'a dataset without names of classes, which metrics need',
    "Set metainfo=dict(classes=('a', ...))")
RULES = (COUNTS, TWICE, CAPITALS, PALETTE, ORDER, NAMES, REDUCE, ONE_CHANNEL, UNNAMED)

HEADS = ('bbox_head', 'mask_head', 'decode_head', 'auxiliary_head', 'point_head', 'mask_iou_head')
# Parts whose num_classes is a count of something else: of objectness, of the data that a backbone was trained with.
OTHER_COUNTS = ('backbone', 'neck', 'rpn_head', 'semantic_head', 'data_preprocessor', 'reid', 'init_cfg')
OTHER_HEADS = ('STDCHead',)  # of edges


@dataclass(frozen=True)
class Classes:
    """Names of a dataset's classes, and where they stand.

    Attributes:
        key: of the setting, or of the dataset with its type, whose classes they are.
        names: the classes.
        things: number of those that are countable; 0 if the dataset does not tell.
    """
    key: str
    names: tuple[str, ...]
    things: int = 0

    def __str__(self) -> str:
        return f'{self.key} has {len(self.names)} ({listed(self.names)})'


def check_classes(cfg: Config, splits: Sequence[str]) -> Iterator[Finding]:
    """Compare the numbers and names of classes; see RULES."""
    if 'language_model' in (cfg.get('model') or {}):  # an open vocabulary: any dataset's names
        return
    seen, first = set(), None
    for split in splits:
        for dataset, _ in leaf_datasets(cfg, split):
            yield from _check_metainfo(dataset, cfg)
            classes = dataset_classes(dataset, cfg)
            if classes is None:
                yield from _check_unnamed(dataset, cfg, split)
                continue
            for key, count, note in _all_counts(cfg, split, dataset, classes):
                if key not in seen:
                    seen.add(key)
                    yield Finding(COUNTS, key, f'{count}{note}, and {classes}')
            if first is None:
                first = dataset, classes
            else:
                yield from _compare_splits(first, (dataset, classes), cfg)
    yield from _check_channels(cfg)


def dataset_classes(dataset: Part, cfg: Config) -> Classes | None:
    """The classes of a dataset that reads files; None if it has none, or no readable ones."""
    key, settings = dataset
    kind = class_of(settings, DATASETS, cfg)
    own = getattr(kind, 'METAINFO', None) or {}
    metainfo = settings.get('metainfo') if isinstance(settings.get('metainfo'), dict) else {}
    given = metainfo.get('classes')
    if isinstance(given, str) and os.path.isfile(given):
        with open(given, encoding='utf-8') as file:
            given = file.read().splitlines()
    if isinstance(given, (list, tuple)):
        return Classes(f'{key}.metainfo.classes', tuple(map(str, given)), len(metainfo.get('thing_classes') or ()))
    if given is None and own.get('classes'):
        things = len(own.get('thing_classes') or ())
        return Classes(f'{key} ({kind.__name__}, without metainfo.classes)', tuple(own['classes']), things)
    return None


def _check_metainfo(dataset: Part, cfg: Config) -> Iterator[Finding]:
    key, settings = dataset
    metainfo = settings.get('metainfo')
    if not isinstance(metainfo, dict):
        return
    for name in ('CLASSES', 'PALETTE'):
        if name in metainfo and name.lower() not in metainfo:
            yield Finding(CAPITALS, f'{key}.metainfo', f'{name} is given, {name.lower()} was wanted')
    given = metainfo.get('classes')
    if isinstance(given, (list, tuple)):
        repeated = sorted({str(name) for name in given if list(given).count(name) > 1})
        if repeated:
            yield Finding(TWICE, f'{key}.metainfo.classes', f'{listed(repeated)} in {len(given)} classes')
        palette = metainfo.get('palette')
        # mmdetection takes the first colours of a longer one, mmsegmentation those of the chosen classes.
        kind = class_of(settings, DATASETS, cfg)
        longer_is_fine = cfg.get('default_scope') == 'mmdet' or getattr(kind, 'METAINFO', None)
        if isinstance(palette, (list, tuple)) and palette and (
                len(palette) < len(given) or len(palette) > len(given) and not longer_is_fine):
            yield Finding(PALETTE, f'{key}.metainfo.palette', f'{len(palette)} colours, and {len(given)} classes')


def _check_unnamed(dataset: Part, cfg: Config, split: str) -> Iterator[Finding]:
    key, settings = dataset
    metainfo = settings.get('metainfo') or {}
    counted = any(kind_of(metric).endswith('IoUMetric') and not metric.get('format_only')
                  for _, metric in metrics_of(cfg, split))
    if split != 'train' and counted and not metainfo.get('classes') and class_of(settings, DATASETS, cfg):
        yield Finding(UNNAMED, f'{key}.metainfo', 'has no classes')


def _all_counts(cfg: Config, split: str, dataset: Part, classes: Classes) -> Iterator[tuple[str, int, str]]:
    """(key, number of classes, note) of what disagrees with a dataset."""
    wanted = {len(classes.names), classes.things or len(classes.names)}
    for key, head, count, note in _head_counts(cfg.get('model'), 'model', cfg):
        binary = len(classes.names) == 2 and count == 1 and _sigmoid(head)
        if count not in wanted and not binary:
            yield key, count, note
        for loss_key, weights in _class_weights(head, key.removesuffix('.num_classes')):
            if len(weights) != count:
                yield loss_key, len(weights), f' weights for {count} classes'
    for key, step in steps_of(dataset):
        if kind_of(step) == 'LoadLabelMap' and isinstance(step.get('num_classes'), int) and (
                step['num_classes'] != len(classes.names)):
            yield f'{key}.num_classes', step['num_classes'], ''
    for key, metric in metrics_of(cfg, split):
        if isinstance(metric.get('num_classes'), int) and metric['num_classes'] not in wanted:
            yield f'{key}.num_classes', metric['num_classes'], ''


def _head_counts(node: Any, key: str, cfg: Config) -> Iterator[tuple[str, dict, int, str]]:
    """(key, head, number of classes, note) of every head at or below a part of the model."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _head_counts(item, f'{key}.{index}', cfg)
    if not isinstance(node, dict) or kind_of(node) in OTHER_HEADS or node.get('class_agnostic'):
        return
    things, stuff = node.get('num_things_classes'), node.get('num_stuff_classes')
    if isinstance(node.get('num_classes'), int):
        yield f'{key}.num_classes', node, node['num_classes'], ''
    elif isinstance(things, int) and isinstance(stuff, int):
        yield f'{key}.num_things_classes', node, things + stuff, ' together with num_stuff_classes'
    elif any(part in HEADS for part in key.split('.')[-2:]) and 'num_classes' not in node:
        kind = class_of(node, MODELS, cfg)
        default = default_of(kind, 'num_classes')
        if isinstance(default, int):
            yield f'{key}.num_classes', node, default, f' (not set, the default of {kind.__name__})'
    for name, item in node.items():
        if name not in OTHER_COUNTS:
            yield from _head_counts(item, f'{key}.{name}', cfg)


def _losses(head: dict, key: str) -> Iterator[Part]:
    """The losses of a segmentation head."""
    losses = head.get('loss_decode')
    if isinstance(losses, dict):
        yield f'{key}.loss_decode', losses
    for index, loss in enumerate(losses if isinstance(losses, (list, tuple)) else ()):
        if isinstance(loss, dict):
            yield f'{key}.loss_decode.{index}', loss


def _sigmoid(head: dict) -> bool:
    return any(loss.get('use_sigmoid') for _, loss in _losses(head, ''))


def _class_weights(head: dict, key: str) -> Iterator[tuple[str, Sequence[float]]]:
    for loss_key, loss in _losses(head, key):
        if kind_of(loss) == 'CrossEntropyLoss' and isinstance(loss.get('class_weight'), (list, tuple)):
            yield f'{loss_key}.class_weight', loss['class_weight']


def _check_channels(cfg: Config) -> Iterator[Finding]:
    for key, head, count, _ in _head_counts(cfg.get('model'), 'model', cfg):
        part = key.removesuffix('.num_classes')
        if not any(name in part.split('.') for name in ('decode_head', 'auxiliary_head')):
            continue
        channels = head.get('out_channels') or count
        softmax = [loss_key for loss_key, loss in _losses(head, part)
                   if kind_of(loss) == 'CrossEntropyLoss' and not loss.get('use_sigmoid')]
        if channels == 1 and (softmax or 'loss_decode' not in head):
            yield Finding(ONE_CHANNEL, key if head.get('out_channels') is None else f'{part}.out_channels',
                          f'1, with {listed(softmax) or "the default loss_decode"} without use_sigmoid')


def _compare_splits(first: tuple[Part, Classes], other: tuple[Part, Classes], cfg: Config) -> Iterator[Finding]:
    (first_dataset, ours), (dataset, theirs) = first, other
    if len(ours.names) == len(theirs.names) and ours.names != theirs.names:
        index = next(i for i, pair in enumerate(zip(ours.names, theirs.names, strict=True)) if pair[0] != pair[1])
        rule = ORDER if set(ours.names) == set(theirs.names) else NAMES
        yield Finding(rule, theirs.key,
                      f'label {index} is {theirs.names[index]!r}, and {ours.names[index]!r} in {ours.key}')
    reduced = [_reduces(settings, cfg) for _, settings in (first_dataset, dataset)]
    alike = all(first_dataset[1].get(name) == dataset[1].get(name) for name in ('type', 'data_root'))
    if alike and None not in reduced and reduced[0] != reduced[1]:
        yield Finding(REDUCE, f'{dataset[0]}.reduce_zero_label',
                      f'{reduced[1]}, and {first_dataset[0]}.reduce_zero_label is {reduced[0]}')


def _reduces(settings: dict, cfg: Config) -> bool | None:
    """reduce_zero_label of a dataset, its type's default included; None if it has none."""
    if 'reduce_zero_label' in settings:
        return bool(settings['reduce_zero_label'])
    kind = class_of(settings, DATASETS, cfg)
    default = default_of(kind, 'reduce_zero_label')
    return None if default is None else bool(default)
