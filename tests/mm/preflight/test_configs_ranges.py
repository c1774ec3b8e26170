"""Numbers that nothing refuses, and with which a model finds nothing or fails at its first test."""
import pytest
from mmcv.ops import nms
from mmengine.config import Config

from apt_dense.mm.preflight.configs_ranges import check_ranges
from tests.locations import CONFIGS


def found(changes: dict, task: str = 'det', splits: tuple[str, ...] = ('train', 'val', 'test')) -> dict[str, str]:
    cfg = Config.fromfile(CONFIGS / f'apt_eva02_ti_demo_{task}.py')
    cfg.merge_from_dict(changes)
    return {finding.where: str(finding) for finding in check_ranges(cfg, splits)}


@pytest.mark.parametrize(('key', 'value', 'wanted'), [
    ('model.test_cfg.rcnn.score_thr', 5, 'below 1'), ('model.test_cfg.rcnn.score_thr', '0.05', 'below 1'),
    ('model.test_cfg.rcnn.mask_thr_binary', 50, 'below 1'), ('model.test_cfg.rcnn.score_thr', float('nan'), 'below 1'),
    ('model.test_cfg.rcnn.nms.iou_threshold', 50, 'from 0 to 1'),
    ('model.test_cfg.rpn.nms.iou_threshold', -1, 'from 0 to 1'),
    ('model.train_cfg.rpn.assigner.pos_iou_thr', 70, 'from 0 to 1'),
    ('model.train_cfg.rcnn.0.assigner.pos_iou_thr', 60, 'from 0 to 1'),
    ('model.test_cfg.rpn.max_per_img', 0, 'from 1 on'),
    ('optim_wrapper.paramwise_cfg.layer_decay_rate', 7, 'above 0, up to 1'),
    ('optim_wrapper.paramwise_cfg.layer_decay_rate', 0, 'above 0, up to 1'),
    ('optim_wrapper.clip_grad.max_norm', -1, 'above 0'), ('auto_scale_lr.base_batch_size', 0, 'from 1 on')])
def test_numbers(key, value, wanted):
    (place, message), = found({key: value}).items()
    assert place == key and f'got {value!r}, wanted a number {wanted}' in message


@pytest.mark.parametrize(('name', 'value', 'said'), [
    ('scale', (0, 0), 'got 0, wanted a number above 0'), ('ratio_range', (2.0, 0.5), 'wanted the smaller number first'),
    ('ratio_range', (0, 1), 'got 0, wanted a number above 0')])
def test_sizes_in_pipelines(name, value, said):
    key = f'train_dataloader.dataset.pipeline.2.{name}'
    messages = found({key: value}, 'seg')
    assert all(place.startswith(key) for place in messages) and said in next(iter(messages.values()))
    assert found({'train_dataloader.dataset.pipeline.2.scale': (float('inf'), 64)}, 'seg') == {}


def test_each_of_a_list():
    assert list(found({'model.train_cfg.rpn.assigner.neg_iou_thr': (0.1, 30)})) == [
        'model.train_cfg.rpn.assigner.neg_iou_thr.1']


@pytest.mark.parametrize('key', ['model.test_cfg.rcnn.score_thr', 'model.test_cfg.rcnn.mask_thr_binary'])
@pytest.mark.parametrize('value', [-1, 0, 0.999])
def test_what_mmdetection_takes(key, value):
    """Every detection, and masks that are not made binary."""
    assert found({key: value}) == {}


@pytest.mark.parametrize('stage', ['rcnn', 'rpn'])
def test_types_of_nms(stage):
    key = f'model.test_cfg.{stage}.nms.type'
    assert found({key: 'soft_nms'}) == {}
    assert f"{key}: got 'softnms'. Take type='nms' or type='soft_nms'" in found({key: 'softnms'})[key]


@pytest.mark.parametrize(('key', 'value', 'said'), [
    ('mode', 'slid', "got 'slid', wanted 'whole' or 'slide'"), ('stride', (0, 0), 'got (0, 0), wanted (height, width)'),
    ('crop_size', 256, 'got 256, wanted (height, width)'), ('crop_size', (0, 256), 'wanted (height, width)'),
    ('stride', (300, 171), 'more than the crop size (256, 256): pixels between the crops would get no class. Set')])
def test_sliding_windows(key, value, said):
    (place, message), = found({f'model.test_cfg.{key}': value}, 'seg').items()
    assert place == f'model.test_cfg.{key}' and said in message
    if key != 'mode':
        assert found({f'model.test_cfg.{key}': value, 'model.test_cfg.mode': 'whole'}, 'seg') == {}


@pytest.mark.parametrize(('numbers', 'is_wrong'), [
    ((100, 300), True), (100, True), ((0, 10, 100), True), ((100, 300, 1000), False), ([1, 10, 100], False),
    ((1, 10, 100, 1000), False), (None, False)])
def test_numbers_of_proposals(numbers, is_wrong):
    assert list(found({'val_evaluator.proposal_nums': numbers}, splits=('val',))) == (
        ['val_evaluator.proposal_nums'] if is_wrong else [])
    for metric in ('proposal_fast', ['proposal_fast']):
        assert found({'val_evaluator.proposal_nums': (100, 300), 'val_evaluator.metric': metric}) == {}


def test_functions_and_numbers_that_the_libraries_take():
    """max_per_img of 0 keeps every box, batched_nms calls what is no text."""
    assert found({'model.test_cfg.rcnn.nms.type': nms, 'model.test_cfg.rcnn.max_per_img': 0}) == {}


def test_names_in_transforms_of_the_user_are_theirs():
    step = dict(type='StepOfThisTest', rescale=True, grayscale=False, scale='auto', crop_size=-1, shift_scale=(-1, 1))
    assert found({'train_dataloader.dataset.pipeline': [step]}) == {}
    known = dict(type='Resize', scale=(-1, 8), scale_factor=None)
    key = 'train_dataloader.dataset.pipeline'
    assert list(found({key: [known]})) == [f'{key}.0.scale.0']


def test_what_others_take_otherwise():
    """Depth estimators slide with flips, and mmdetection's own evaluator takes any numbers of proposals."""
    assert found({'model.test_cfg.mode': 'slide_flip'}, 'seg') == {}
    assert found({'val_evaluator.proposal_nums': [300], 'val_evaluator.use_mp_eval': True}) == {}
