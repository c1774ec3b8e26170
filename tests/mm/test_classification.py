"""Classification by the tools: training, resuming, testing, and the tools that look at a config."""
import json
import pickle
import runpy
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from apt_dense.mm.cli import launch
from tests.locations import CONFIGS, TOOLS

pytest.importorskip('apt_dense.mm.cls', exc_type=ImportError)

SMALL = dict(img_size=32, pretrain_img_size=32, patch_size=4, embed_dims=16, depth=2, num_heads=2, drop_path_rate=0.1)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Three classes: red, green and blue pictures, noisy below, flat above."""
    root = tmp_path_factory.mktemp('classes')
    random = np.random.default_rng(0)
    for split, count in (('train', 6), ('val', 3)):
        for label, name in enumerate(('blue', 'green', 'red')):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                image = np.full((32, 32, 3), 40, np.uint8)
                image[16:] = random.integers(0, 80, (16, 32, 3))
                image[..., 2 - label] += 120
                Image.fromarray(image).save(root / split / name / f'{index}.png')
    return root


def config(root, work, name='vit_ti_demo_cls', **settings) -> str:
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.merge_from_dict({
        'model.backbone': SMALL, 'model.num_classes': 3, 'model.data_preprocessor.num_classes': 3,
        **{f'{split}_dataloader.{key}': value for split in ('train', 'val', 'test') for key, value in {
            'dataset.data_root': str(root), 'dataset.num_classes': 3, 'num_workers': 0, 'batch_size': 6,
            'persistent_workers': False}.items()},
        'train_cfg.max_iters': 8, 'train_cfg.val_interval': 4, 'default_hooks.checkpoint.interval': 4,
        'default_hooks.logger.interval': 1, **settings})
    for pipeline in (cfg.train_dataloader.dataset.pipeline,):
        pipeline[1].size = 32
    path = work.with_suffix('.py')  # a run leaves a copy of its config in its directory
    cfg.dump(path)
    return str(path)


def run(monkeypatch, tool: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
    return launch.run_tool(runpy.run_path(str(TOOLS / tool), run_name='tool')['main'])


def weights(path) -> dict:
    return torch.load(path, weights_only=False)['state_dict']


def test_training_resumes_exactly_and_is_tested(data, tmp_path, monkeypatch, capsys):
    """With mixed labels, averaged weights, layer decay; stopped in the middle, it ends with the same weights."""
    settings = {
        'model.data_preprocessor.mixup_alpha': 0.8, 'model.data_preprocessor.cutmix_alpha': 1.0,
        'model.loss': dict(label_smoothing=0.1), 'optim_wrapper.constructor': 'APTLayerDecayOptimWrapperConstructor',
        'optim_wrapper.paramwise_cfg': dict(num_layers=2, layer_decay_rate=0.8),
        'custom_hooks': [dict(type='KeptTokensHook'), dict(type='EMAHook'), dict(type='BadDataHook')],
        'model.backbone.num_scales': 2, 'model.backbone.thresholds': (5.0,)}
    whole = config(data, tmp_path / 'whole', **settings)
    assert run(monkeypatch, 'train.py', whole, '--work-dir', tmp_path / 'whole') == 0
    half = config(data, tmp_path / 'half', **settings)
    options = ['--work-dir', str(tmp_path / 'half')]
    assert run(monkeypatch, 'train.py', half, *options, '--cfg-options', 'train_cfg.max_iters=4') == 0
    assert run(monkeypatch, 'train.py', half, *options, '--resume') == 0
    one, other = (weights(tmp_path / run / 'iter_8.pth') for run in ('whole', 'half'))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

    out = tmp_path / 'logits.pkl'
    assert run(monkeypatch, 'test.py', whole, tmp_path / 'whole/iter_8.pth', '--out', out, '--work-dir',
               tmp_path / 'tested') == 0
    found = pickle.loads(out.read_bytes())
    metrics = json.loads(next((tmp_path / 'tested').glob('*/*.json')).read_text())
    right = [one['logits'].argmax() == one['gt_label'] for one in found]
    assert len(found) == 9 and metrics['accuracy/top1'] == pytest.approx(100 * np.mean(right))
    assert 0 < metrics['test_kept_tokens'] < 1 and metrics['accuracy/top5'] == 100


def test_it_learns(data, tmp_path, monkeypatch):
    path = config(data, tmp_path / 'run', **{
        'train_cfg.max_iters': 60, 'train_cfg.val_interval': 60, 'default_hooks.checkpoint.interval': 60,
        'optim_wrapper.optimizer.lr': 3e-3})
    assert run(monkeypatch, 'train.py', path, '--work-dir', tmp_path / 'run') == 0
    assert 'accuracy/top1: 100.0000' in next((tmp_path / 'run').glob('*/*.log')).read_text()


@pytest.mark.parametrize(('tool', 'arguments'), [
    ('analysis_tools/get_flops.py', ['--head-images', '1', '--num-images', '2']),
    ('analysis_tools/calibrate_thresholds.py', ['--config', None, '--kept', '0.5']), ('check_data.py', []),
    ('analysis_tools/estimate_memory.py', [None, 'PICTURE'])])
def test_tools_that_read_a_config(data, tmp_path, monkeypatch, capsys, tool, arguments):
    path = config(data, tmp_path / 'run', **{'model.backbone.num_scales': 2, 'model.backbone.thresholds': (5.0,)})
    places = {None: path, 'PICTURE': str(data / 'val/red/0.png')}
    words = [places.get(word, word) for word in (arguments if None in arguments else [None, *arguments])]
    assert run(monkeypatch, tool, *words) == 0, capsys.readouterr().err


@pytest.mark.parametrize(('settings', 'message'), [
    ({'model.num_classes': 4}, 'num_classes'),
    ({'val_dataloader.dataset.num_classes': 4}, 'val has 3 folders of classes, from blue to red, and num_classes is 4'),
    ({'train_dataloader.dataset.data_root': 'nowhere/'}, 'dataset files are missing'),
    ({'train_dataloader.dataset.pipeline.1.type': 'torchvision/RandomResized'}, 'torchvision/RandomResized')])
def test_what_does_not_fit_stops_before_training(data, tmp_path, monkeypatch, capsys, settings, message):
    path = config(data, tmp_path / 'run', **settings)
    assert run(monkeypatch, 'train.py', path, '--work-dir', tmp_path / 'run') == 2
    error = capsys.readouterr().err
    assert 'Traceback' not in error and message in error, error


def test_validation_of_other_classes_stops_before_training(data, tmp_path, monkeypatch, capsys):
    """As many folders, of which one has another name: labels would be compared with those of other classes."""
    root = tmp_path / 'data'
    for split in ('train', 'val'):
        for index, name in enumerate(('blue', 'green', 'red')):
            name = 'amber' if (split, name) == ('val', 'red') else name
            (root / split / name).mkdir(parents=True)
            Image.new('RGB', (32, 32)).save(root / split / name / f'{index}.png')
    path = config(root, tmp_path / 'run')
    assert run(monkeypatch, 'train.py', path, '--work-dir', tmp_path / 'run') == 2
    error = capsys.readouterr().err
    assert 'amber' in error and 'red' in error and 'Traceback' not in error, error


@pytest.mark.parametrize('option', ['--show', '--show-dir=x'])
def test_nothing_is_drawn_of_a_classifier(data, tmp_path, monkeypatch, capsys, option):
    path = config(data, tmp_path / 'run')
    (tmp_path / 'x.pth').write_bytes(b'')
    torch.save(dict(state_dict={'head.weight': torch.zeros(1)}), tmp_path / 'x.pth')
    assert run(monkeypatch, 'test.py', path, tmp_path / 'x.pth', option, '--work-dir', tmp_path / 'run') == 2
    assert 'a classifier has neither' in capsys.readouterr().err
