"""The sweep over thresholds: what it measures, writes and refuses."""
import ast
import json

import pytest
from PIL import Image

import apt_dense
from apt_dense.mm.inference.evaluation import Evaluation
from tests.locations import load_tool
from tests.mm.inference.conftest import checkpoints, dense_det, folder  # noqa: F401


@pytest.fixture(scope='module')
def tool():
    return load_tool('analysis_tools/sweep_thresholds.py')


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_sweep(task, tool, checkpoints, tmp_path, capsys):  # noqa: F811
    out = tmp_path / 'out'
    tool.main([str(checkpoints[task]), '--kept', '0.4', '0.3', '--thresholds', '2', '1', '--time-images', '2',
               '--rounds', '1', '--out-dir', str(out)])
    printed = capsys.readouterr().out
    content = json.loads((out / 'sweep.json').read_text())
    settings = content['settings']
    assert [setting['name'] for setting in settings] == ['dense', "the config's", '0.4 kept', '0.3 kept', 'given']
    assert settings[0]['kept'] == 1 and settings[0]['speedup'] == dict(backbone=1, model=1)
    assert 0.2 < settings[3]['kept'] <= 0.3 < settings[2]['kept'] <= 0.4
    assert settings[4]['thresholds'] == [2, 1] and settings[1]['thresholds'] == [3, 3]
    model = apt_dense.load(checkpoints[task], as_published=True, thresholds=settings[3]['thresholds'])
    metrics = Evaluation(model.cfg).evaluate(model)
    assert metrics.pop('kept_tokens_content') == pytest.approx(settings[3]['kept'])
    assert metrics == pytest.approx(settings[3]['metrics'])
    assert content['metric'] == {'det': 'coco/segm_mAP', 'seg': 'mIoU'}[task]
    front = [setting for setting in settings if setting['on_front']]
    copied = [line.partition('#')[0] for line in printed.splitlines() if line.startswith('model = ')]
    assert len(copied) == len(front) > 0
    for line, setting in zip(copied, front, strict=True):
        assert list(ast.literal_eval(line.partition('thresholds=')[2].strip()[:-2])) == setting['thresholds']
    assert Image.open(out / 'sweep.png').size[0] > 1000


def test_the_front_and_the_median_of_the_ratios(tool, monkeypatch):
    """One setting is slower and worse than another; the machine is twice as slow in the second round."""
    settings = [tool.Setting(name, (threshold,), dict(mIoU=metric))
                for name, threshold, metric in (('dense', -1, 50), ('a', 1, 49), ('b', 2, 40), ('c', 3, 45))]
    seconds, calls = {-1: 4, 1: 2, 2: 1.6, 3: 1.25}, []

    def seconds_of(model, setting, batch, clock):
        calls.append((setting.name, batch))
        second = seconds[setting.thresholds[0]] * (2 if len(calls) > 16 else 1)
        return dict(backbone=second / 2, model=second)

    monkeypatch.setattr(tool, 'seconds_of', seconds_of)
    model = type('Model', (), dict(cfg=type('Config', (), dict(default_scope='mmseg'))))
    tool.measure_speed(model, settings, ['first', 'second'], 2, 'process')
    tool.mark_front(settings, 'mIoU')
    assert [setting.speedup['model'] for setting in settings] == [1, 2, 2.5, 3.2]
    assert [setting.name for setting in settings if setting.on_front] == ['dense', 'a', 'c']
    assert settings[2].seconds['model'] == pytest.approx(2.4)
    assert calls.count(('a', 'first')) == calls.count(('a', 'second')) == 3  # once as a warm-up


def test_a_dense_model_merges_by_resizing(tool, dense_det, checkpoints, tmp_path, capsys):  # noqa: F811
    config, weights = dense_det
    data = apt_dense.load(checkpoints['det']).cfg.test_dataloader.dataset.data_root
    options = [f'test_dataloader.dataset.data_root={data}',
               f'test_evaluator.ann_file={data}annotations/instances_val.json',
               'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']
    tool.main([str(config), '--weights', str(weights), '--kept', '0.4', '--time-images', '1', '--rounds', '1',
               '--out-dir', str(tmp_path / 'out'), '--cfg-options', *options])
    settings = json.loads((tmp_path / 'out/sweep.json').read_text())['settings']
    assert [setting['name'] for setting in settings] == ['dense', '0.4 kept'] and settings[1]['kept'] <= 0.4
    assert 'untrained, scored by upsampling_error_max, and count in attention' in capsys.readouterr().out


@pytest.mark.parametrize(('arguments', 'message'), [
    (('x.pth',), 'checkpoint x.pth does not exist'),
    (('{seg}', '--thresholds', '1'), '--thresholds 1: the model has 3 sizes of patches, give 2'),
    (('{seg}', '--kept', '0.001'), '--kept 0.001: target 0.001 is out of reach'),
    (('{seg}', '--kept', '0.4', '--metric', 'AP'), '--metric AP: the evaluator gives aAcc, mIoU, mAcc'),
    (('{seg}', '--kept', '0.4', '--calibrate-on', 'nowhere'), 'nowhere does not exist'),
    (('{seg}', '--kept', '7'), '--kept 7 is no share of the tokens'),
    (('{seg}', '--rounds', '0'), '--rounds 0: wanted 1 or more'),
    (('{seg}', '--cfg-options', 'model.x=1'), '--cfg-options model.x: the model is what'),
])
def test_bad_input_is_one_line(arguments, message, tool, checkpoints, refused):  # noqa: F811
    assert message in refused(tool.main, [text.format(**checkpoints) for text in arguments])


def test_the_metric_is_asked_before_anything_is_evaluated(tool, checkpoints, monkeypatch, refused):  # noqa: F811
    monkeypatch.setattr(tool, 'find_settings', lambda *args: pytest.fail('time is spent'))
    assert 'the evaluator gives' in refused(tool.main, [str(checkpoints['seg']), '--kept', '0.4', '--metric', 'AP'])
