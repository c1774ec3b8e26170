"""Numbers and names of classes: wherever they stand, both sides and both keys are named."""
from pathlib import Path

import pytest
from mmengine.config import Config

from apt_dense.mm.preflight.configs_classes import RULES, check_classes

CONFIGS = Path(__file__).parents[3] / 'configs'
SPLITS = ('train', 'val', 'test')


def load(task: str) -> Config:
    return Config.fromfile(CONFIGS / f'eva02_ti_demo_{task}.py')


def found(cfg: Config, *splits: str) -> list[tuple[str, str]]:
    """[(rule, message)]"""
    findings = list(check_classes(cfg, splits or SPLITS))
    assert all(finding.rule in RULES for finding in findings)
    return [(finding.rule.name, str(finding)) for finding in findings]


def node_at(cfg: Config, key: str):
    node = cfg
    for name in key.split('.'):
        node = node[int(name)] if name.isdigit() else node[name]
    return node


@pytest.mark.parametrize('key', [*(f'model.roi_head.bbox_head.{index}' for index in range(3)),
                                 'model.roi_head.mask_head'])
def test_every_head_of_a_detector(key):
    cfg = load('det')
    node_at(cfg, key).num_classes = 80
    (rule, message), = found(cfg)
    assert rule == 'class-counts-differ'
    assert message.startswith(f'{key}.num_classes: 80, and train_dataloader.dataset.metainfo.classes has 5 (ball, ')


@pytest.mark.parametrize('key', ['model.decode_head', 'model.auxiliary_head'])
@pytest.mark.parametrize('as_list', [False, True])
def test_every_head_of_a_segmentor(key, as_list):
    cfg = load('seg')
    head = node_at(cfg, key)
    head.num_classes = 150
    if as_list:  # a cascade, several auxiliary heads
        cfg.model[key.split('.')[1]] = [dict(head, num_classes=6), head]
        key = f'{key}.1'
    (rule, message), = found(cfg)
    assert rule == 'class-counts-differ' and message.startswith(f'{key}.num_classes: 150, and ')
    assert 'has 6 (background, ball' in message


def test_a_head_with_one_dict_and_masks_as_a_list():
    cfg = load('det')
    roi_head = cfg.model.roi_head
    roi_head.bbox_head = dict(roi_head.bbox_head[0], num_classes=4)
    roi_head.mask_head = [roi_head.mask_head, dict(roi_head.mask_head, num_classes=7)]
    assert [message.split(':')[0] for _, message in found(cfg)] == [
        'model.roi_head.bbox_head.num_classes', 'model.roi_head.mask_head.1.num_classes']


def test_a_head_that_takes_its_types_default():
    cfg = load('det')
    cfg.model.roi_head.mask_head.pop('num_classes')
    (_, message), = found(cfg)
    assert 'mask_head.num_classes: 80 (not set, the default of FCNMaskHead), and ' in message


def test_a_default_that_a_parent_of_the_type_has():
    """``bbox_head`` of a type that hands on all it is given."""
    cfg = load('det')
    head = cfg.model.roi_head.bbox_head[0]
    head.pop('num_classes')
    head.type = 'Shared4Conv1FCBBoxHead'
    (_, message), = found(cfg)
    assert 'bbox_head.0.num_classes: 80 (not set, the default of Shared4Conv1FCBBoxHead), and ' in message


def test_counts_of_something_else_are_left_alone():
    cfg = load('det')
    cfg.model.rpn_head.num_classes = 1
    cfg.model.backbone.num_classes = 1000
    cfg.model.roi_head.mask_head.update(num_classes=1, class_agnostic=True)
    cfg.model.roi_head.semantic_head = dict(type='FusedSemanticHead', num_classes=183)
    assert found(cfg) == []
    cfg = load('seg')
    cfg.model.auxiliary_head = [cfg.model.auxiliary_head, dict(type='STDCHead', num_classes=2)]
    assert found(cfg) == []
    cfg = load('det')
    cfg.model.update(language_model=dict(type='BertModel'))
    cfg.model.roi_head.mask_head.num_classes = 256
    assert found(cfg) == []


def test_things_and_stuff():
    cfg = load('det')
    cfg.model = dict(type='Mask2Former', panoptic_head=dict(type='Mask2FormerHead', num_things_classes=5,
                                                            num_stuff_classes=0))
    assert found(cfg) == []
    cfg.model.panoptic_head.num_stuff_classes = 53
    assert 'num_things_classes: 58 together with num_stuff_classes' in found(cfg)[0][1]


def test_things_of_a_config():
    """Heads of boxes learn the things only."""
    cfg = load('det')
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.metainfo = dict(
            classes=('ball', 'box', 'sky'), thing_classes=('ball', 'box'), stuff_classes=('sky',))
    heads = [*cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head]
    for head in heads:
        head.num_classes = 2
    assert found(cfg) == []
    heads[0].num_classes = 4
    (rule, _), = found(cfg)
    assert rule == 'class-counts-differ'


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('wrap', [False, True])
def test_label_maps_of_every_pipeline(split, wrap):
    cfg = load('seg')
    dataset = cfg[f'{split}_dataloader'].dataset
    place = next(place for place, step in enumerate(dataset.pipeline) if step.type == 'LoadLabelMap')
    dataset.pipeline[place].num_classes = 150
    key = f'{split}_dataloader.dataset.pipeline.{place}'
    if wrap:
        dataset.pipeline[place] = dict(type='GuardSamples', transforms=[dataset.pipeline[place]])
        cfg[f'{split}_dataloader'].dataset = dict(type='RepeatDataset', times=2, dataset=dataset)
        key = f'{split}_dataloader.dataset.dataset.pipeline.{place}.transforms.0'
    (rule, message), = found(cfg)
    assert rule == 'class-counts-differ' and message.startswith(f'{key}.num_classes: 150, and {split}_dataloader.')


def test_test_time_augmentation():
    cfg = load('seg')
    cfg.test_dataloader.dataset.pipeline = [dict(type='TestTimeAug', transforms=[
        [dict(type='LoadLabelMap', num_classes=150)], [dict(type='PackSegInputs')]])]
    (_, message), = found(cfg, 'test')
    assert message.startswith('test_dataloader.dataset.pipeline.0.transforms.0.0.num_classes: 150, and ')


def test_classes_that_a_type_brings():
    cfg = load('det')
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.pop('metainfo')
    messages = found(cfg)
    assert len(messages) == 4
    assert all('and train_dataloader.dataset (CheckedCocoDataset, without metainfo.classes) has 80 (person' in message
               for _, message in messages)


def test_one_split_of_another_number():
    cfg = load('det')
    cfg.val_dataloader.dataset.pop('metainfo')
    assert {message.split('and ')[1].split(' ')[0] for _, message in found(cfg)} == {'val_dataloader.dataset'}
    assert found(cfg, 'train', 'test') == []


def test_classes_of_a_metric():
    cfg = load('seg')
    cfg.val_evaluator.num_classes = 19
    assert found(cfg)[0][1].startswith('val_evaluator.num_classes: 19, and val_dataloader.')


def test_class_weights():
    cfg = load('seg')
    cfg.model.decode_head.loss_decode = [dict(type='CrossEntropyLoss', class_weight=[1.0] * 5), dict(type='DiceLoss')]
    (_, message), = found(cfg)
    assert message.startswith('model.decode_head.loss_decode.0.class_weight: 5 weights for 6 classes, and ')


@pytest.mark.parametrize(('metainfo', 'rule', 'message'), [
    (dict(CLASSES=('a', 'b', 'c', 'd', 'e')), 'metainfo-in-capitals', 'CLASSES is given, classes was wanted'),
    (dict(classes=('a', 'b', 'c', 'b', 'd')), 'class-twice', 'b in 5 classes'),
    (dict(classes=('a', 'b', 'c', 'd', 'e'), palette=[(0, 0, 0)]), 'palette-length', '1 colours, and 5 classes'),
])
def test_metainfo(metainfo, rule, message):
    cfg = load('det')
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.metainfo = metainfo
    messages = [text for name, text in found(cfg) if name == rule]
    assert len(messages) == 3 and all(message in text for text in messages)


def test_palettes_that_work():
    """mmdetection takes the first colours; mmsegmentation those of the classes that its dataset type knows."""
    cfg = load('det')
    cfg.train_dataloader.dataset.metainfo.palette = [(0, 0, 0)] * 9
    assert found(cfg) == []
    cfg = load('seg')
    cfg.train_dataloader.dataset.metainfo.palette = [(0, 0, 0)] * 9
    assert [rule for rule, _ in found(cfg)] == ['palette-length']


def test_a_file_of_classes(tmp_path):
    (tmp_path / 'classes.txt').write_text('a\nb\nc\nd\ne\n')
    cfg = load('det')
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=str(tmp_path / 'classes.txt'))
    assert found(cfg) == []
    (tmp_path / 'classes.txt').write_text('a\nb\n')
    assert len(found(cfg)) == 4


@pytest.mark.parametrize('split', ['val', 'test'])
def test_another_order_than_in_training(split):
    cfg = load('det')
    cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=('ball', 'kite', 'crate', 'lifebuoy', 'starfish'))
    (rule, message), = found(cfg)
    assert rule == 'classes-in-another-order'
    assert message.startswith(f'{split}_dataloader.dataset.metainfo.classes: label 1 is ')
    assert "'kite', and 'crate' in train_dataloader.dataset.metainfo.classes" in message
    cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=('ball', 'Crate', 'kite', 'lifebuoy', 'starfish'))
    assert [rule for rule, _ in found(cfg)] == ['classes-named-otherwise']


def test_reduce_zero_label_of_one_split():
    cfg = load('seg')
    cfg.train_dataloader.dataset.reduce_zero_label = True
    messages = [message for rule, message in found(cfg) if rule == 'reduce-zero-label-differs']
    assert len(messages) == 2 and 'False, and train_dataloader.dataset.reduce_zero_label is True' in messages[0]


def test_no_classes():
    cfg = load('seg')
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.pop('metainfo')
    assert [rule for rule, _ in found(cfg)] == ['no-classes'] * 2
    cfg.test_evaluator.format_only = True
    assert [rule for rule, _ in found(cfg)] == ['no-classes']


def one_class(**head) -> Config:
    cfg = load('seg')
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=('background', 'crack'))
        for step in cfg[f'{split}_dataloader'].dataset.pipeline:
            if step.type == 'LoadLabelMap':
                step.num_classes = 2
    for part in (cfg.model.decode_head, cfg.model.auxiliary_head):
        part.update(head)
    return cfg


SIGMOID = dict(type='CrossEntropyLoss', use_sigmoid=True)


def test_a_softmax_over_one_channel():
    for head, key in ((dict(num_classes=1), 'num_classes'), (dict(num_classes=2, out_channels=1), 'out_channels')):
        messages = [message for rule, message in found(one_class(**head)) if rule == 'one-channel-softmax']
        assert [message.split(':')[0] for message in messages] == [
            f'model.decode_head.{key}', f'model.auxiliary_head.{key}']
        assert 'with model.decode_head.loss_decode without use_sigmoid' in messages[0]
        assert 'num_classes=2' in messages[0]
    cfg = one_class(num_classes=1)
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=('crack',))
    assert [rule for rule, _ in found(cfg)].count('one-channel-softmax') == 2
    for head in (dict(num_classes=1, loss_decode=SIGMOID), dict(num_classes=2, out_channels=1, loss_decode=SIGMOID),
                 dict(num_classes=2)):
        assert found(one_class(**head)) == []
