"""Classification by the tools: training, resuming, testing, and the tools that look at a config."""
import json
import pickle
import runpy
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from apt_dense.mm.cli import launch
from apt_dense.mm.preflight.class_folders import check_class_folders
from tests.locations import CONFIGS, ROOT, TOOLS

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
    monkeypatch.syspath_prepend(str((TOOLS / tool).parent))  # as for a script that is started
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


def test_the_documented_config_for_own_pictures(data, tmp_path):
    """Of docs/classification.md, beside the base that it names."""
    text = (ROOT / 'docs/classification.md').read_text().partition('# mine.py\n')[2].partition('```')[0]
    path = tmp_path / 'mine.py'
    path.write_text(text.replace('data/mine/', f'{data}/'))
    cfg = Config.fromfile(path)
    assert {cfg[f'{split}_dataloader'].dataset.data_root for split in ('train', 'val', 'test')} == {f'{data}/'}
    found = list(check_class_folders(cfg, ('train', 'val', 'test')))  # there are three classes, and not two
    assert len(found) == 3 and all('num_classes is 2' in str(one) for one in found)
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_epochs == 20, 'the rate falls to 0 over the whole training'
    with torch.device('meta'), DefaultScope.overwrite_default_scope('mmengine'):
        assert MODELS.build(cfg.model).head.out_features == 2


# ---- comparing methods ----
@pytest.fixture(scope='module')
def compared(data, tmp_path_factory):
    """A config with APT and a dense checkpoint of random weights."""
    folder = tmp_path_factory.mktemp('compared')
    path = config(data, folder / 'apt', **{'model.backbone.num_scales': 2, 'model.backbone.thresholds': (5.0,)})
    cfg = Config.fromfile(path)
    cfg.merge_from_dict({'model.backbone.num_scales': 1, 'model.backbone.thresholds': ()})
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmengine'):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / 'dense.pth')
    return path, folder / 'dense.pth'


def test_methods_are_compared_and_kept(compared, tmp_path, monkeypatch, capsys):
    """Every method keeps about its budget, refused ones say why, and a second run measures what is new."""
    out, words = tmp_path / 'out', ['--time-batches', '1', '--rounds', '1']
    tool = 'analysis_tools/compare_methods.py'
    assert run(monkeypatch, tool, *compared, '--budgets', '0.6', '--out-dir', out, *words) == 0
    rows = json.loads((out / 'methods.json').read_text())['configs']['apt']['results']
    assert rows['dense']['kept'] == 1 and rows['dense']['speedup']['model'][0] > 0
    for name in ('apt_0.6', 'resizing_0.6', 'random_0.6'):
        assert rows[name]['kept'] == pytest.approx(0.6, abs=0.05), name
    assert rows['apt_0.6']['accuracy/top1'] == rows['resizing_0.6']['accuracy/top1']
    assert 'it can be' in rows['tome_0.6']['refused'], 'two blocks: one merging'
    assert (out / 'methods.png').stat().st_size > 10000 and '| APT | 0.6' in (out / 'methods.md').read_text()
    capsys.readouterr()
    assert run(monkeypatch, tool, *compared, '--budgets', '0.6', '0.8', '--methods', 'random', 'tome', '--out-dir',
               out, *words) == 0
    again = json.loads((out / 'methods.json').read_text())['configs']['apt']['results']
    assert again['apt_0.6'] == rows['apt_0.6'] and again['tome_0.8']['kept'] == pytest.approx(0.8, abs=0.05)
    assert 'random_0.6' not in capsys.readouterr().out


@pytest.mark.parametrize(('words', 'message'), [
    (['CONFIG'], 'give each config with its checkpoint behind it'),
    (['CONFIG', 'CHECKPOINT', '--budgets', '1.5'], '--budgets 1.5: wanted shares'),
    (['CONFIG', 'nowhere.pth'], 'checkpoint nowhere.pth'),
    (['DENSE', 'CHECKPOINT'], 'has one size of patches'),
    (['CONFIG', 'CHECKPOINT', '--methods', 'dtem', '--budgets', '0.8'], 'its metric is learnt'),
    (['CONFIG', 'CHECKPOINT', '--methods', 'dtem_advanced', '--budgets', '0.8'], 'its metric is learnt')])
def test_what_cannot_be_compared(compared, data, tmp_path, monkeypatch, capsys, words, message):
    places = {'CONFIG': compared[0], 'CHECKPOINT': compared[1], 'DENSE': config(data, tmp_path / 'dense')}
    try:
        status = run(monkeypatch, 'analysis_tools/compare_methods.py', *(places.get(word, word) for word in words),
                     '--out-dir', tmp_path / 'out', '--time-batches', '1', '--rounds', '1')
    except SystemExit as stopped:
        status = stopped.code
    assert status == (0 if '--methods' in words else 2)
    assert message in capsys.readouterr().err


def test_each_method_is_trained_by_the_configs_schedule(compared, tmp_path, monkeypatch, capsys):
    """The dense model too; one whose training fails stops the comparison, and is tried again."""
    out, words = tmp_path / 'out', ['--train', '--methods', 'dtem', '--budgets', '0.8', '--time-batches', '1']
    tool, file = 'analysis_tools/compare_methods.py', tmp_path / 'out/methods.json'
    short = ['--cfg-options', 'train_cfg.max_iters=1', 'train_cfg.val_interval=1']
    (out / 'apt').mkdir(parents=True)
    (out / 'apt/dtem_0.8').write_text('in the way')
    assert run(monkeypatch, tool, *compared, *words, '--out-dir', out, *short) == 2
    assert 'Traceback' not in capsys.readouterr().err
    assert json.loads(file.read_text())['configs']['apt']['results'].keys() == {'dense'}
    (out / 'apt/dtem_0.8').unlink()
    assert run(monkeypatch, tool, *compared, *words, '--out-dir', out, *short) == 0
    rows = json.loads(file.read_text())['configs']['apt']['results']
    assert rows['dtem_0.8']['kept'] == pytest.approx(0.8, abs=0.05) and 'accuracy/top1' in rows['dtem_0.8']
    learnt = weights(next((out / 'apt/dtem_0.8').glob('iter_*.pth')))
    assert any('.reduction.metrics.' in name for name in learnt)
