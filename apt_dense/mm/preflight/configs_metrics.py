"""Names of metrics that an evaluator does not know: an error at the first validation, or when it is built."""
import difflib
from collections.abc import Iterator, Sequence

from mmengine.config import Config
from mmengine.registry import METRICS

from apt_dense.mm.preflight.configs_evaluation import COCO_ITEMS, IOU_NAMES, PROPOSAL_ITEMS
from apt_dense.mm.preflight.consumers import LIBRARIES
from apt_dense.mm.preflight.findings import STOP, Finding, Rule
from apt_dense.mm.preflight.parts import class_of, listed, metrics_of

NAME = Rule(
    'metric-name', STOP, 'a name of a metric that the evaluator does not know', 'Take names that it knows, in a list')
RULES = (NAME,)

COCO = ('bbox', 'segm', 'proposal', 'proposal_fast')
ITEMS = (*COCO_ITEMS, *PROPOSAL_ITEMS)
# {class: {argument: the names that it takes}}, as their code compares them.
NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    'CocoMetric': dict(metric=COCO, metric_items=ITEMS),
    'LVISMetric': dict(metric=COCO),
    'CrowdHumanMetric': dict(metric=('MR', 'AP', 'JI')),
    'MOTChallengeMetric': dict(metric=('HOTA', 'CLEAR', 'Identity')),
    'ReIDMetrics': dict(metric=('mAP', 'CMC')),
    'VOCMetric': dict(metric=('recall', 'mAP'), eval_mode=('area', '11points')),
    'YouTubeVISMetric': dict(metric=('youtube_vis_ap',)),
    'IoUMetric': dict(iou_metrics=tuple(IOU_NAMES)),
    'SemSegMetric': dict(iou_metrics=tuple(IOU_NAMES)),
}
NO_TUPLES = ('CocoMetric', 'LVISMetric', 'CrowdHumanMetric', 'YouTubeVISMetric')  # they take a tuple for one name


def check_metrics(cfg: Config, splits: Sequence[str]) -> Iterator[Finding]:
    """Compare the names in evaluators with those that their classes know; see RULES."""
    for split in splits:
        for key, metric in metrics_of(cfg, split):
            kind = _known_class(class_of(metric, METRICS, cfg))
            for argument, names in NAMES.get(kind, {}).items():
                yield from _check_names(f'{key}.{argument}', metric.get(argument), names, kind)


def _known_class(kind: type | None) -> str:
    """The class whose names count for a metric; '' if one that derives from it may know others."""
    for base in kind.__mro__ if kind else ():
        if base.__name__ in NAMES:
            return base.__name__
        own = base.__module__.partition('.')[0] not in LIBRARIES
        if own and {'__init__', 'compute_metrics', 'total_area_to_metrics'} & set(vars(base)):
            return ''
    return ''


def _check_names(key: str, given: object, names: Sequence[str], kind: str) -> Iterator[Finding]:
    if given is None:
        return
    if isinstance(given, tuple) and kind in NO_TUPLES:
        yield Finding(NAME, key, f'{given!r} is a tuple, and {kind} takes a list')
        return
    for name in given if isinstance(given, (list, tuple)) else [given]:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, 2) or [
                other for other in names if other.casefold() == str(name).casefold()]
            yield Finding(NAME, key, f'{name!r}, and {kind} knows {listed(names, 12)}' + (
                f'; nearest: {", ".join(near)}' if near else ''))
