"""apt_dense.load: names, configs, checkpoints, official files, thresholds; and what is refused."""
import logging
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

import apt_dense
from apt_dense.core.conversion import convert
from apt_dense.core.scorers import SCORERS
from apt_dense.mm.cli.saved_config import config_of
from apt_dense.mm.errors import DataError
from apt_dense.mm.inference import opening
from tests.mm.conftest import CONFIGS, shrink
from tests.mm.models import test_seg
from tests.official import official_state


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_opening_and_predicting_say_nothing_of_the_libraries_code(task, checkpoints, recwarn):
    apt_dense.load(checkpoints[task]).predict(np.zeros((40, 50, 3), np.uint8))
    assert not [str(warning.message) for warning in recwarn]


def test_a_checkpoint_of_another_task_is_named(tmp_path):
    cfg = Config.fromfile(CONFIGS / 'apt_vit_ti_demo_cls.py')
    torch.save(dict(state_dict={}, meta=dict(cfg=cfg.pretty_text)), tmp_path / 'classifier.pth')
    with pytest.raises(DataError, match=r'classifier\.pth has model APTClassifier .*: wanted a detector'):
        apt_dense.load(tmp_path / 'classifier.pth')


def test_a_checkpoint_has_its_config_inside(checkpoints):
    for task, path in checkpoints.items():
        model = apt_dense.load(path)
        assert model.task == task and model.device.type == 'cpu' and not model.module.training
        content = torch.load(path, weights_only=True)
        for name, value in model.module.state_dict().items():
            assert torch.equal(value, content['state_dict'][name]), name
        assert model.classes == tuple(content['meta']['dataset_meta']['classes'])
        assert model.thresholds == (3.0, 3.0) and f'{task}, ' in repr(model)


def test_custom_imports_that_are_not_there(checkpoints, tmp_path):
    base = f"_base_ = '{CONFIGS}/apt_eva02_ti_demo_seg.py'"
    (tmp_path / 'own.py').write_text(f"{base}\ncustom_imports = dict(imports=['of_another_folder'])\n")
    with pytest.raises(DataError, match='own.py has custom_imports.*of_another_folder.*PYTHONPATH'):
        apt_dense.load(tmp_path / 'own.py')
    content = torch.load(checkpoints['seg'], weights_only=True)
    content['meta']['cfg'] += "\ncustom_imports = dict(imports=['of_another_folder'])\n"
    torch.save(content, tmp_path / 'own.pth')
    with pytest.raises(DataError, match='own.pth has custom_imports.*of_another_folder.*PYTHONPATH'):
        apt_dense.load(tmp_path / 'own.pth')


def test_the_usual_test_setting_and_the_published_one(checkpoints):
    rcnn = apt_dense.load(checkpoints['det']).cfg.model.test_cfg.rcnn
    assert (rcnn.score_thr, rcnn.max_per_img, rcnn.nms.type) == (0.05, 100, 'nms')
    own = config_of(torch.load(checkpoints['det'], weights_only=True)['meta'], '').model.test_cfg.rcnn
    assert apt_dense.load(checkpoints['det'], as_published=True).cfg.model.test_cfg.rcnn == own != rcnn


def test_a_name_without_weights_warns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a name is none of a file
    with pytest.warns(UserWarning, match='apt_eva02_ti_demo_seg without weights: they are random numbers'):
        model = apt_dense.load('apt_eva02_ti_demo_seg')
    assert model.task == 'seg' and len(model.classes) == 6


def test_random_weights_are_drawn_in_silence(tmp_path, monkeypatch):
    """mmengine would log a line for each parameter."""
    monkeypatch.chdir(tmp_path)
    records, logger = [], MMLogger.get_current_instance()
    handler = logging.Handler(logging.INFO)
    handler.emit = records.append
    logger.addHandler(handler)
    level = logger.level
    try:
        with pytest.warns(UserWarning, match='without weights'):
            apt_dense.load('apt_eva02_ti_demo_seg')
    finally:
        logger.removeHandler(handler)
    assert len(records) < 10 and logger.level == level


def test_a_config_file_and_weights(dense_det):
    config, weights = dense_det
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        model = apt_dense.load(config, weights)
    assert torch.equal(model.module.state_dict()['backbone.pos_embed'],
                       torch.load(weights, weights_only=True)['state_dict']['backbone.pos_embed'])
    assert len(model.classes) == 5 and model.thresholds == ()


def test_patches_of_a_dense_model(dense_det, folder):
    """Its weights, merged as the paper's Resizing does; nothing merged is the dense model."""
    config, weights = dense_det
    dense = apt_dense.load(config, weights).predict(folder)
    assert all(result.tokens.kept == 1 for result in dense)
    merged = apt_dense.load(config, weights, thresholds=(3.0, 3.0)).predict(folder)
    assert all(result.tokens.kept < 1 for result in merged)
    kept = apt_dense.load(config, weights, kept=1.0).predict(folder)
    assert all(result.tokens.kept == 1 for result in kept)


def test_thresholds_for_a_share(checkpoints, folder):
    for task, path in checkpoints.items():
        model = apt_dense.load(path, kept=0.6, calibrate_on=folder)
        results = model.predict(folder)
        tokens = sum(result.tokens.num_tokens for result in results)
        assert 0.4 < tokens / sum(result.tokens.num_cells for result in results) <= 0.6, task
        fine, coarse = model.thresholds
        assert coarse == pytest.approx(fine, rel=1e-3)  # the proportions of the config's (3, 3)


@pytest.mark.parametrize(('options', 'scorer'), [
    (dict(kept=0.6), 'upsampling_error_max'), (dict(kept=0.6, scorer='laplacian_max'), 'laplacian_max'),
    (dict(thresholds=(3.0, 3.0)), 'entropy'), (dict(thresholds=(1e-3, 1e-3), scorer='variance'), 'variance')])
def test_the_scorer_of_a_dense_model(options, scorer, dense_det, folder):
    calibrate_on = folder if 'kept' in options else None
    model = apt_dense.load(*dense_det, calibrate_on=calibrate_on, **options)
    assert model.module.backbone.chooser.scorer is SCORERS[scorer]
    assert model.module.backbone.proportional_attention == (scorer != 'entropy')  # which is the paper's Resizing
    results = model.predict(folder)
    kept = sum(result.tokens.num_tokens for result in results) / sum(result.tokens.num_cells for result in results)
    assert 0.2 < kept <= options.get('kept', 0.99)
    assert 'kept' not in options or len(set(model.thresholds)) == 1  # one dial


@pytest.mark.parametrize('patches', [dict(kept=0.6), dict(thresholds=(1e-3, 1e-3), scorer='variance')])
def test_merged_patches_of_a_dense_model_count_as_was_asked_for(patches, dense_det, folder, tmp_path):
    patches = {**patches, **(dict(calibrate_on=folder) if 'kept' in patches else {})}
    config, weights = dense_det
    asked = apt_dense.load(config, weights, proportional_attention=False, **patches)
    assert asked.module.backbone.proportional_attention is False
    cfg = asked.cfg
    cfg.model.backbone.update(num_scales=1, thresholds=(), proportional_attention=False)
    cfg.dump(tmp_path / 'own.py')
    assert apt_dense.load(tmp_path / 'own.py', weights, **patches).module.backbone.proportional_attention is False


def test_a_checkpoint_beside_a_config_that_counts_otherwise(checkpoints, tmp_path):
    cfg = apt_dense.load(checkpoints['det']).cfg
    cfg.model.backbone.proportional_attention = True
    cfg.dump(tmp_path / 'own.py')
    with pytest.warns(UserWarning, match=r'backbone\.proportional_attention is True here and was False in the'):
        apt_dense.load(tmp_path / 'own.py', checkpoints['det'])
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        model = apt_dense.load(tmp_path / 'own.py', checkpoints['det'], proportional_attention=False)
    assert model.module.backbone.proportional_attention is False


def test_another_scorer_than_the_configs(checkpoints, folder, tmp_path):
    """The proportions of the config's thresholds are not its."""
    cfg = apt_dense.load(checkpoints['det']).cfg
    cfg.model.backbone.thresholds = (3.0, 0.3)
    cfg.dump(tmp_path / 'own.py')
    with pytest.warns(UserWarning, match='without weights'):
        model = apt_dense.load(tmp_path / 'own.py', kept=0.6, calibrate_on=folder, scorer='upsampling_error_max')
    fine, coarse = model.thresholds
    assert coarse == fine < 1 and model.module.backbone.chooser.scorer is SCORERS['upsampling_error_max']


def test_a_budget(checkpoints, folder):
    results = apt_dense.load(checkpoints['det'], thresholds=(-1, -1), max_tokens=20).predict(folder)
    assert max(result.tokens.num_tokens for result in results) <= 20


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_official_files(task, tmp_path, monkeypatch):
    """By themselves, where the config follows from names and shapes; and as weights of a config."""
    monkeypatch.setattr(opening, 'CONFIGS', tmp_path)
    cfg = shrink(Config.fromfile(CONFIGS / 'eva02_ti_demo_det.py')) if task == 'det' else test_seg.tiny(
        'eva02_ti_demo_seg')
    fitting = opening.OFFICIAL[task][1]
    cfg.dump(tmp_path / f'{fitting}.py')
    for name in opening.OFFICIAL[task]:
        if name != fitting:
            cfg.model.backbone.embed_dims = 64
            cfg.dump(tmp_path / f'{name}.py')
    cfg = Config.fromfile(tmp_path / f'{fitting}.py')
    state = official_state(cfg)
    torch.save({'model': state}, tmp_path / 'official.pth')
    wanted = convert(state, task).state_dict
    for arguments in (('official.pth',), (fitting, 'official.pth')):
        monkeypatch.chdir(tmp_path)
        model = apt_dense.load(*arguments)
        assert all(torch.equal(value, wanted[name]) for name, value in model.module.state_dict().items()
                   if name in wanted) and len(wanted) > 50
    torch.save({'model': {name: value for name, value in state.items() if 'blocks.2' not in name}}, 'cut.pth')
    with pytest.raises(DataError, match='cut.pth'):
        apt_dense.load('cut.pth')


def test_a_config_in_a_checkpoint_is_data_not_code(tmp_path, checkpoints):
    for text in ('import os', 'x = open("/etc/passwd")', 'x = __import__("os")', 'x = dict(**y)', 'x = {**y}', 'x = y',
                 'x[0] = 1', 'a = b = 1', 'x = dict(1)', 'x = ['):
        with pytest.raises(DataError, match='the config inside model.pth is not one that mmengine has written'):
            config_of(dict(cfg=text), 'model.pth')
    assert config_of({}, '') is None and config_of(None, '') is None
    for path in sorted(CONFIGS.glob('*.py')):  # what mmengine writes, of every config
        cfg = Config.fromfile(path)
        assert config_of(dict(cfg=cfg.pretty_text), '').to_dict() == cfg.to_dict(), path


@pytest.mark.parametrize(('arguments', 'message'), [
    (('apt_eva02_l_cocoo',), r"'apt_eva02_l_cocoo' is no config of this project.*did you mean apt_eva02_l_coco"),
    (('missing.pth',), 'checkpoint missing.pth does not exist'),
    (('missing.py',), r'config missing.py \(in .*\) does not exist'),
    (('apt_eva02_l_coco', 'missing.pth'), 'checkpoint missing.pth does not exist'),
    (('text.pth',), 'text.pth cannot be read as a checkpoint'),
    (('text.py',), 'config text.py cannot be read, mend it: SyntaxError'),
    (('bare.pth',), 'bare.pth holds no config: give the config first'),
    (('bare.pth', 'bare.pth'), 'are both checkpoints'),
    (('resnet.py',), 'or a segmentor with a decode_head on a backbone that packs tokens'),
    (('apt_vit_b_in1k_224',), r'has model APTClassifier .*: wanted a detector .*\. tools/test.py CONFIG CHECKPOINT '
     r'--out FILE.pkl writes the logits of a classifier'),
])
def test_what_cannot_be_opened(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('text.pth').write_text('hello')
    Path('text.py').write_text('model = dict(')
    torch.save({'weight': torch.zeros(2)}, 'bare.pth')
    Path('resnet.py').write_text("model = dict(type='FasterRCNN', backbone=dict(type='ResNet'))\n")
    with pytest.raises(DataError, match=message):
        apt_dense.load(*arguments)


@pytest.mark.parametrize(('options', 'message'), [
    (dict(kept=0.5), 'kept=0.5 needs pictures to find thresholds with: calibrate_on=FOLDER'),
    (dict(calibrate_on='.'), 'calibrate_on without kept'),
    (dict(kept=0.5, calibrate_on='.', thresholds=(1, 1)), 'give it or thresholds, not both'),
    (dict(kept=1.5, calibrate_on='.'), r'kept=1.5 is no share of the tokens'),
    (dict(kept=0.5, calibrate_on='nowhere'), 'kept=0.5: nowhere does not exist'),
    (dict(thresholds=(1,)), r'got 1 thresholds \(1,\), and the model has 3 sizes of patches: give 2'),
    (dict(scorer='entropy'), "scorer='entropy' wants thresholds of its own: give thresholds, or kept"),
    (dict(scorer='edges', thresholds=(1, 1)), "scorer='edges' is none: entropy, laplacian_max"),
    (dict(scorer=['entropy'], thresholds=(1, 1)), 'is none: entropy'),
    (dict(device='gpu'), "device='gpu' is none"),
    (dict(device='cuda:99'), "device='cuda:99', and torch .* sees \\d+ GPUs"),
])
def test_options_that_make_no_sense(options, message, checkpoints):
    with pytest.raises(DataError, match=message):
        apt_dense.load(checkpoints['det'], **options)


@pytest.mark.parametrize(('arguments', 'message'), [
    ((None,), 'load got None, wanted a checkpoint, or the name or file of a config'),
    ((Config(dict(model=dict())),), r"load got a config, wanted its file: cfg\.dump\('mine\.py'\)"),
    (('apt_eva02_ti_demo_det', 5), 'load got 5 for weights, wanted a checkpoint'),
    (('a.pth', 'cpu'), "load got the device 'cpu' for weights: name it, device='cpu'"),
    (('a.pth', 'cuda:1'), "name it, device='cuda:1'")])
def test_arguments_of_another_kind(arguments, message):
    with pytest.raises(DataError, match=message):
        apt_dense.load(*arguments)


def test_thresholds_in_the_wrong_order_are_told(checkpoints):
    with pytest.warns(UserWarning, match=r'thresholds \(1, 2\) rise, and they run fine to coarse'):
        assert apt_dense.load(checkpoints['det'], thresholds=(1, 2)).thresholds == (1, 2)


def test_weights_of_another_task_and_labels_that_do_not_fit(checkpoints, dense_det, tmp_path):
    config, _ = dense_det
    with pytest.raises(DataError, match='does not fit the config'):
        apt_dense.load(config, checkpoints['seg'])
    content = torch.load(checkpoints['det'], weights_only=True)
    content['meta']['dataset_meta'] = dict(classes=('one', 'two'))
    torch.save(content, tmp_path / 'two.pth')
    with pytest.raises(DataError, match='two.pth names 2 classes, and the head has num_classes=5'):
        apt_dense.load(tmp_path / 'two.pth')


def test_a_checkpoint_that_was_moved_needs_no_data(checkpoints, tmp_path, monkeypatch):
    shutil.copy(checkpoints['det'], tmp_path / 'moved.pth')
    monkeypatch.chdir(tmp_path)
    data = checkpoints['det'].parents[1] / 'det_data'
    away = data.rename(tmp_path / 'elsewhere')
    try:
        assert 'ball' in apt_dense.load('moved.pth').classes
    finally:
        away.rename(data)


def test_a_config_of_a_stock_model_without_what_prediction_does_not_need(folder, tmp_path):
    """mmsegmentation's own class knows no ``trainable``; a config may have no scope and no visualiser."""
    cfg = test_seg.tiny()
    cfg.model.type = 'EncoderDecoder'
    for name in ('trainable', 'distill', 'pretrained'):
        cfg.model.pop(name, None)
    cfg.model.data_preprocessor.test_cfg = dict(size_divisor=64)
    cfg.model.test_cfg = dict(mode='whole')
    content = {key: value for key, value in cfg.to_dict().items() if key not in ('default_scope', 'visualizer')}
    Config(content).dump(tmp_path / 'stock.py')
    with pytest.warns(UserWarning, match='without weights'):
        model = apt_dense.load(tmp_path / 'stock.py')
    result = model.predict(folder / 'a.png')[0]
    assert type(model.module).__name__ == 'EncoderDecoder' and result.label_map.shape == (96, 128)
    assert result.draw().size == (128, 96)


def test_a_config_without_a_test_dataset(tmp_path):
    cfg = test_seg.tiny()
    cfg.pop('test_dataloader')
    cfg.dump(tmp_path / 'short.py')
    with pytest.raises(DataError, match=r'short.py has no test_dataloader, whose pipeline prepares the pictures'):
        apt_dense.load(tmp_path / 'short.py')
