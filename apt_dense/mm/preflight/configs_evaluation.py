"""Evaluation: files, names of metrics, and settings that fail at the first validation, or score wrongly."""
import difflib
import filecmp
import os
from collections.abc import Iterator, Sequence
from typing import Any

import mmcv
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, DefaultScope

from apt_dense.mm.preflight import datasets
from apt_dense.mm.preflight.configs_classes import dataset_classes
from apt_dense.mm.preflight.datasets import joined
from apt_dense.mm.preflight.findings import STOP, WARN, Finding, Rule
from apt_dense.mm.preflight.headers import open_header
from apt_dense.mm.preflight.keywords import parameters_of
from apt_dense.mm.preflight.parts import Part, class_of, kind_of, leaf_datasets, listed, metrics_of, steps_of

FILES = Rule(
    'evaluator-reads-another-file', STOP, 'an evaluator whose annotation file is not that of its dataset',
    'Give both the same file: the dataset joins data_root and ann_file, the evaluator takes ann_file as it is')
MONITOR = Rule(
    'metric-not-given', STOP,
    'save_best, early stopping or a schedule that wants a metric which the evaluator does not give',
    'Take one that it gives, or change val_evaluator')
RULE = Rule(
    'metric-without-rule', STOP, 'a metric of which mmengine does not know whether more is better',
    "Add rule='greater' or rule='less'")
AUTO = Rule(
    'save-best-auto', WARN, "save_best='auto' where the evaluator's first metric is the pixel accuracy",
    "Name the metric: save_best='mIoU'")
BATCH = Rule(
    'validation-batch-of-sizes', STOP, 'a batch of pictures of several sizes, which mmsegmentation does not evaluate',
    'Set batch_size=1, or model.data_preprocessor.test_cfg=dict(size=(H, W)) to pad them')
FORMAT = Rule(
    'format-only-without-place', STOP, 'format_only without a place for the results',
    "Set outfile_prefix='FOLDER/NAME' (detection), output_dir='FOLDER' (segmentation), or format_only=False")
MASKS = Rule(
    'masks-wanted', STOP, 'masks that are to be scored or learnt, and that the model or the pipeline has not',
    "Without masks: roi_head.mask_head=None, metric='bbox' and pipelines without with_mask; with: all three")
SAME = Rule(
    'validated-on-training-data', WARN, 'a validation or a test on the very files that are trained on',
    'Give it pictures of its own: as it is, it says how well they are learnt by heart')
RULES = (FILES, SAME, MONITOR, RULE, AUTO, BATCH, FORMAT, MASKS)

COCO_ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
PROPOSAL_ITEMS = ('AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000')
IOU_NAMES = {'mIoU': ('mIoU', 'mAcc'), 'mDice': ('mDice', 'mAcc'), 'mFscore': ('mFscore', 'mPrecision', 'mRecall')}
# Parts of names by which mmengine's hooks tell that more, or less, is better.
KNOWN_DIRECTIONS = ('acc', 'top', 'ar@', 'auc', 'precision', 'map', 'mdice', 'miou', 'macc', 'aacc', 'loss')
MAX_SIZES = 200  # pictures of a dataset whose sizes are compared
# Steps that leave the size of a picture as it is.
KEEP_SIZE = frozenset((
    'LoadImageFromFile', 'LoadCheckedImage', 'LoadAnnotations', 'LoadLabelMap', 'GuardSamples', 'RandomFlip',
    'PhotoMetricDistortion', 'Normalize', 'CLAHE', 'AdjustGamma', 'RGB2Gray', 'PackSegInputs'))


def check_evaluation(cfg: Config, splits: Sequence[str]) -> Iterator[Finding]:
    """Check the evaluators, and what depends on them; see RULES."""
    for split in splits:
        if split != 'train':
            yield from _check_files(cfg, split)
            yield from _check_format(cfg, split)
            yield from _check_batch(cfg, split)
        yield from _check_masks(cfg, split)
    if 'train' in splits:
        yield from _check_monitors(cfg)
        yield from _check_same(cfg, [split for split in splits if split != 'train'])


def _check_files(cfg: Config, split: str) -> Iterator[Finding]:
    leaves = [leaf for leaf, _ in leaf_datasets(cfg, split) if leaf[1].get('ann_file')]
    if len(leaves) != 1:  # of several datasets together the evaluator's file is another by rights
        return
    (dataset_key, settings), = leaves
    ours = joined(settings, settings['ann_file'])
    for key, metric in metrics_of(cfg, split):
        theirs = metric.get('ann_file')
        if isinstance(theirs, str) and not _same_file(ours, theirs):
            yield Finding(FILES, f'{key}.ann_file', f'{theirs}, and {dataset_key}.ann_file is {ours}')


def _check_same(cfg: Config, splits: Sequence[str]) -> Iterator[Finding]:
    trained = dict(_files_of(cfg, 'train'))
    for split in splits:
        for files, key in _files_of(cfg, split):
            if files in trained:
                yield Finding(SAME, key, f'{listed(files)}, as {trained[files]}')


def _files_of(cfg: Config, split: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """The annotation file of each dataset of a split, or its folders where it has none; and the dataset's key."""
    for source in datasets.datasets_of(cfg, split):
        prefixes = source.settings.get('data_prefix')
        paths = [source.settings.get('ann_file')] if source.settings.get('ann_file') else (
            list(prefixes.values()) if isinstance(prefixes, dict) else [prefixes])
        files = tuple(os.path.relpath(os.path.realpath(joined(source.settings, path))) for path in paths
                      if isinstance(path, str))
        if files and source.settings.get('indices') is None:  # which may part one file
            yield files, source.key


def _same_file(first: str, second: str) -> bool:
    if os.path.realpath(first) == os.path.realpath(second) or first == second:
        return True
    return os.path.isfile(first) and os.path.isfile(second) and filecmp.cmp(first, second, shallow=False)


def _check_format(cfg: Config, split: str) -> Iterator[Finding]:
    for key, metric in metrics_of(cfg, split):
        kind = class_of(metric, METRICS, cfg)
        places = {'output_dir', 'outfile_prefix'} & (parameters_of(kind) or set() if kind else set())
        asked = split == 'test' and kind_of(metric).endswith('IoUMetric')  # by tools/test.py, for --out
        if metric.get('format_only') and places and not asked and not any(metric.get(place) for place in places):
            yield Finding(FORMAT, f'{key}.{min(places)}', f'not set, and {key}.format_only=True')


def _check_masks(cfg: Config, split: str) -> Iterator[Finding]:
    roi_head = (cfg.get('model') or {}).get('roi_head')
    if not isinstance(roi_head, dict):
        return
    if not roi_head.get('mask_head'):
        for key, metric in metrics_of(cfg, split):
            if 'segm' in _listed(metric.get('metric')):
                yield Finding(MASKS, f'{key}.metric', f"{metric['metric']} has 'segm', and model.roi_head no mask_head")
    elif split == 'train':
        for (key, settings), wrappers in leaf_datasets(cfg, split):
            steps = [step for part in (*wrappers, (key, settings)) for step in steps_of(part)]
            loads = [(place, step) for place, step in steps if kind_of(step) == 'LoadAnnotations']
            if loads and not any(step.get('with_mask') for _, step in loads):
                yield Finding(MASKS, f'{loads[0][0]}.with_mask', 'not set, and model.roi_head has a mask_head')


def _check_batch(cfg: Config, split: str) -> Iterator[Finding]:
    """Sizes come from the files' headers: no pixel is read."""
    batch_size = (cfg.get(f'{split}_dataloader') or {}).get('batch_size', 1)
    preprocessor = (cfg.get('model') or {}).get('data_preprocessor') or {}
    if cfg.get('default_scope') != 'mmseg' or batch_size == 1 or preprocessor.get('test_cfg'):
        return
    sizes: dict[tuple[int, int], str] = {}
    for leaf, _ in leaf_datasets(cfg, split):
        for path in _pictures(leaf, cfg):
            try:
                with open_header(path) as picture:
                    sizes.setdefault(_resized(picture.size, leaf), path)
            except OSError:  # which others tell
                continue
    if len(sizes) > 1:
        examples = (f'{os.path.basename(path)} {height}x{width} px' for (width, height), path in sizes.items())
        yield Finding(BATCH, f'{split}_dataloader.batch_size',
                      f'{batch_size}, and the pictures have {len(sizes)} sizes: {listed(examples, 3)} (height x width)')


def _pictures(leaf: Part, cfg: Config) -> list[str]:
    """Paths of a sample of a segmentation dataset's pictures; none if it cannot be built."""
    kind = class_of(leaf[1], DATASETS, cfg)
    if kind is None or 'BaseSegDataset' not in [base.__name__ for base in kind.__mro__]:
        return []
    try:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            samples = DATASETS.build(dict(leaf[1], pipeline=[], lazy_init=True)).load_data_list()
    except Exception:  # which check_label_maps tells
        return []
    return [sample['img_path'] for sample in samples[::max(1, len(samples) // MAX_SIZES)]]


def _resized(size: tuple[int, int], leaf: Part) -> tuple[int, int]:
    """(width, height) after the pipeline's resizing; (0, 0) if a step may make all of one size."""
    for _, step in steps_of(leaf):
        if kind_of(step) not in KEEP_SIZE and kind_of(step) != 'Resize':
            return (0, 0)
        if kind_of(step) == 'Resize' and step.get('scale') is not None:
            scale = step['scale']
            scale = (scale, scale) if isinstance(scale, int) else tuple(scale)
            size = mmcv.rescale_size(size, scale) if step.get('keep_ratio') else scale
    return tuple(size)


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def metric_names(cfg: Config, split: str) -> list[str] | None:
    """The names that a split's evaluator gives, in its order; None if one of its metrics is not known here."""
    names = []
    for _, metric in metrics_of(cfg, split):
        kind = class_of(metric, METRICS, cfg)
        given = _names_of(metric, kind, cfg, split)
        if given is None:
            return None
        prefix = metric.get('prefix') or kind.default_prefix
        names += [f'{prefix}/{name}' if prefix else name for name in given]
    return names


def _names_of(metric: dict, kind: type | None, cfg: Config, split: str) -> list[str] | None:
    if kind_of(metric).startswith('Dump') or metric.get('format_only'):
        return []
    # A metric that computes otherwise than the one that it derives from has names of its own, but for this project's.
    named = next((base.__name__ for base in (kind.__mro__ if kind else ())
                  if 'compute_metrics' in vars(base) and not base.__module__.startswith('apt_dense.')), '')
    if named == 'IoUMetric':
        wanted = _listed(metric.get('iou_metrics', 'mIoU'))
        return list(dict.fromkeys(['aAcc', *(name for item in wanted for name in IOU_NAMES.get(item, ()))]))
    if named != 'CocoMetric':
        return None
    names = []
    for item in _listed(metric.get('metric', 'bbox')):
        if item == 'proposal_fast':
            names += [f'AR@{number}' for number in metric.get('proposal_nums', (100, 300, 1000))]
        elif item == 'proposal':
            names += metric.get('metric_items') or PROPOSAL_ITEMS
        else:
            if metric.get('classwise'):
                classes = next((dataset_classes(leaf, cfg) for leaf, _ in leaf_datasets(cfg, split)), None)
                names += [f'{name}_precision' for name in (classes.names if classes else ())]
            names += [f'{item}_{name}' for name in metric.get('metric_items') or COCO_ITEMS]
    return names


def _monitors(cfg: Config) -> Iterator[tuple[str, str, bool]]:
    """(key, name, has it a rule) of each metric that something waits for."""
    default_hooks = cfg.get('default_hooks') or {}
    hooks = [(f'default_hooks.{name}', hook) for name, hook in default_hooks.items()]
    hooks += [(f'custom_hooks.{index}', hook) for index, hook in enumerate(cfg.get('custom_hooks') or ())]
    for key, hook in hooks:
        if kind_of(hook).endswith('CheckpointHook'):
            rules = _listed(hook.get('rule')) or hook.get('greater_keys') or hook.get('less_keys')
            yield from ((f'{key}.save_best', str(name), bool(rules)) for name in _listed(hook.get('save_best')))
        elif kind_of(hook) == 'EarlyStoppingHook' and hook.get('monitor'):
            yield f'{key}.monitor', hook['monitor'], bool(hook.get('rule'))
    for index, schedule in enumerate(_listed(cfg.get('param_scheduler'))):
        if kind_of(schedule).startswith('ReduceOnPlateau'):
            yield f'param_scheduler.{index}.monitor', schedule.get('monitor', 'loss'), True


def _check_monitors(cfg: Config) -> Iterator[Finding]:
    names = metric_names(cfg, 'val')
    for key, name, has_rule in _monitors(cfg):
        if not cfg.get('val_dataloader'):
            yield Finding(MONITOR, key, f'{name!r}, and there is no val_dataloader: nothing is validated')
        elif name == 'auto':
            if names == []:
                yield Finding(MONITOR, key, f'{name!r}, and val_evaluator gives no metric (format_only)')
            elif names and names[0] == 'aAcc':
                yield Finding(AUTO, key, f"'auto' takes the first: {listed(names, 20)}")
        elif names is not None and name not in names:
            near = difflib.get_close_matches(name, names, 2)
            yield Finding(MONITOR, key, f'{name!r}, and val_evaluator gives {listed(names, 20) or "none"}'
                          + (f'; nearest: {", ".join(near)}' if near else ''))
        elif not has_rule and not any(part in name.lower() for part in KNOWN_DIRECTIONS):
            yield Finding(RULE, key, f'{name!r} without a rule')
