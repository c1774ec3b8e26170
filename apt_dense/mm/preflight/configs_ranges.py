"""Numbers that nothing refuses, and with which a model finds nothing, learns nothing or fails at its first test."""
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import METRICS, MODELS, TRANSFORMS

from apt_dense.mm.preflight.consumers import is_of_libraries
from apt_dense.mm.preflight.findings import STOP, WARN, Finding, Rule
from apt_dense.mm.preflight.parts import Part, class_of, metrics_of, settings_of

RANGE = Rule('setting-out-of-range', STOP, 'a threshold, share or size with which nothing could be found or learnt',
             'Set one of that range')
NMS = Rule('nms-unknown', STOP, 'a type of NMS that mmcv does not have', "Take type='nms' or type='soft_nms'")
SLIDING = Rule('sliding-window', STOP, 'a mode, crop size or stride with which a segmentor cannot be tested',
               "Set test_cfg=dict(mode='whole'), or dict(mode='slide', crop_size=(H, W), stride=(h, w)) with a stride "
               'from 1 px to the crop size')
GAPS = Rule('sliding-window-with-gaps', WARN, 'a stride of sliding windows above their size',
            'Set model.test_cfg.stride to the crop size or less, unless no picture is larger than one window')
PROPOSALS = Rule('proposal-numbers', STOP, 'proposal_nums of less than three numbers, which COCO evaluation reads',
                 'Set proposal_nums=(100, 300, 1000)')
RULES = (RANGE, NMS, SLIDING, GAPS, PROPOSALS)

SHARE = (lambda value: 0 <= value <= 1, 'from 0 to 1')
BELOW_ONE = (lambda value: value < 1, 'below 1')
POSITIVE_SHARE = (lambda value: 0 < value <= 1, 'above 0, up to 1')
POSITIVE = (lambda value: value > 0, 'above 0')
# (place of a number in the config, is it in range, the range); the first that matches.
RANGES: tuple[tuple[str, tuple[Callable[[float], bool], str]], ...] = (
    (r'model\.(test_cfg|train_cfg)(\.\w+)*\.(score_thr|min_score|mask_thr_binary)', BELOW_ONE),
    (r'model\.(test_cfg|train_cfg)(\.\w+)*\.nms(_pre)?\.(iou_threshold|iou_thr)', SHARE),
    (r'model\.train_cfg(\.\w+)*\.assigner\.(pos_iou_thr|neg_iou_thr|min_pos_iou)(\.\d+)?', SHARE),
    (r'model\.train_cfg(\.\w+)*\.sampler\.pos_fraction', SHARE),
    (r'model\.test_cfg\.rpn\.max_per_img', (lambda value: value != 0, 'from 1 on')),
    (r'optim_wrapper\.paramwise_cfg\.(layer_decay_rate|decay_rate)', POSITIVE_SHARE),
    (r'optim_wrapper\.clip_grad\.(max_norm|clip_value)', POSITIVE),
    (r'.*_dataloader\.(.+\.)?pipeline\.(.+\.)?(img_scale|scales?|crop_size|ratio_range)(\.\d+)*', POSITIVE),
    (r'.*_dataloader\.(.+\.)?pipeline\.(.+\.)?cat_max_ratio', POSITIVE_SHARE),
    (r'auto_scale_lr\.base_batch_size', (lambda value: value >= 1, 'from 1 on')),
)
MODES = ('whole', 'slide', 'slide_flip')  # the last of depth estimators
NMS_TYPES = ('nms', 'soft_nms', 'nms_rotated', 'nms_quadri')  # names in mmcv/ops/nms.py, which batched_nms evaluates


def check_ranges(cfg: Config, splits: Sequence[str]) -> Iterator[Finding]:
    """Check numbers of the model's tests and training, see RULES; what no place here names is let through."""
    for key, node in settings_of(cfg, splits):
        if '.pipeline.' in key and not is_of_libraries(class_of(node, TRANSFORMS, cfg)):
            continue  # what a transform of the user means by a name is its own affair
        for name, value in node.items():
            yield from _check_number(f'{key}.{name}', value)
        ratios = node.get('ratio_range')
        if isinstance(ratios, (list, tuple)) and len(ratios) == 2 and all(map(_is_number, ratios)) and (
                ratios[0] > ratios[1]):
            yield Finding(RANGE, f'{key}.ratio_range', f'got {ratios!r}, wanted the smaller number first')
        if re.fullmatch(r'model\.(test_cfg|train_cfg)(\.\w+)*\.nms', key):
            kind = node.get('type', 'nms')
            if isinstance(kind, str) and kind not in NMS_TYPES:
                yield Finding(NMS, f'{key}.type', f'got {kind!r}')
    test_cfg = (cfg.get('model') or {}).get('test_cfg')
    if isinstance(test_cfg, dict) and 'mode' in test_cfg and is_of_libraries(class_of(cfg.model, MODELS, cfg)):
        yield from _check_sliding(test_cfg)
    for split in splits:
        for part in metrics_of(cfg, split) if split != 'train' else ():
            yield from _check_proposals(part, cfg)


def _check_number(key: str, value: Any) -> Iterator[Finding]:
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _check_number(f'{key}.{index}', item)
        return
    fits, wanted = next((rule for place, rule in RANGES if re.fullmatch(place, key)), (None, ''))
    if fits is None or value is None or isinstance(value, dict):
        return
    if not _is_number(value) or not fits(value):
        yield Finding(RANGE, key, f'got {value!r}, wanted a number {wanted}')


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _check_sliding(test_cfg: dict) -> Iterator[Finding]:
    mode = test_cfg['mode']
    if mode not in MODES:
        yield Finding(SLIDING, 'model.test_cfg.mode', f'got {mode!r}, wanted {" or ".join(map(repr, MODES[:2]))}')
    if mode not in MODES[1:]:
        return
    sizes = {name: test_cfg.get(name) for name in ('crop_size', 'stride')}
    for name, size in sizes.items():
        if not (isinstance(size, (list, tuple)) and len(size) == 2 and all(
                type(length) is int and length >= 1 for length in size)):
            yield Finding(SLIDING, f'model.test_cfg.{name}', f'got {size!r}, wanted (height, width) in whole pixels')
            return
    if any(step > length for step, length in zip(sizes['stride'], sizes['crop_size'], strict=True)):
        yield Finding(GAPS, 'model.test_cfg.stride', f'got {sizes["stride"]}, more than the crop size '
                      f'{sizes["crop_size"]}: pixels between the crops would get no class')


def _check_proposals(metric: Part, cfg: Config) -> Iterator[Finding]:
    key, settings = metric
    kind, numbers = class_of(settings, METRICS, cfg), settings.get('proposal_nums')
    is_coco = 'CocoMetric' in [base.__name__ for base in getattr(kind, '__mro__', ())]
    if numbers is None or not is_coco or settings.get('use_mp_eval'):  # which takes any
        return
    wanted = settings.get('metric', 'bbox')
    fast = set(wanted if isinstance(wanted, (list, tuple)) else [wanted]) == {'proposal_fast'}
    three = isinstance(numbers, (list, tuple)) and len(numbers) >= 3
    if not fast and not (three and all(type(number) is int and number >= 1 for number in numbers)):
        yield Finding(PROPOSALS, f'{key}.proposal_nums', f'got {numbers!r}')
