"""A checkpoint that does not fit stops a test and is named in a training's log; a dense twin's is welcome."""
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import METRICS, MODELS
from mmengine.runner.base_loop import BaseLoop
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from mmseg.models import SegTTAModel
from torch import nn

from apt_dense.core.embed import ADDED_PARAMETERS
from apt_dense.mm.cli import launch
from apt_dense.mm.cli.loading import CheckLoadedHook, load_weights
from apt_dense.mm.errors import DataError
from tests.mm.toys import RUNS, ToyMetric, toy_config

BACKBONE = dict(type='APTEVA02', img_size=64, embed_dims=8, depth=1, num_heads=1, window_size=0,
                global_block_indexes=(0,), pretrain_img_size=64, num_scales=2, thresholds=(3.0,))
ADDED = {f'backbone.{name}' for name in ADDED_PARAMETERS}


class Segmentor(BaseModel):
    """A backbone, a batch norm and a class layer."""

    def __init__(self, num_classes: int = 3, **backbone):
        super().__init__()
        torch.manual_seed(num_classes)
        self.backbone = MODELS.build(dict(BACKBONE, **backbone))
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return inputs


DENSE = dict(num_scales=1, thresholds=())


def load(model: nn.Module, checkpoint: dict, train: bool = False, **backbone) -> list[tuple[int, str]]:
    """What is logged, as (level, text), when a runner tests a checkpoint, or trains from it."""
    logged = []
    loop = BaseLoop.__new__(type('Loop', (BaseLoop,), dict(run=None))) if train else dict(type='IterBasedTrainLoop')
    logger = SimpleNamespace(log=lambda level, text: logged.append((level, text)),
                             warning=lambda text: logged.append((logging.WARNING, text)))
    runner = SimpleNamespace(model=model, _resume=False, _load_from='a.pth', _train_loop=loop, logger=logger,
                             cfg=Config(dict(model=dict(backbone={**BACKBONE, **backbone}))))
    hook = CheckLoadedHook()
    hook.after_load_checkpoint(runner, checkpoint)
    _load_checkpoint_to_model(model, checkpoint)
    hook.before_train(runner)
    inner = getattr(model, 'module', model)
    assert not inner._load_state_dict_pre_hooks and not inner._load_state_dict_post_hooks
    return logged


def state_of(model: nn.Module, prefix: str = '', **changes) -> dict:
    state = {**model.state_dict(), **{name.replace('__', '.'): value for name, value in changes.items()}}
    return {'state_dict': {f'{prefix}{name}': value for name, value in state.items() if value is not None}}


@pytest.mark.parametrize('change', [
    {}, dict(norm__num_batches_tracked=None), dict(backbone__pos_embed=torch.randn(1, 1 + 49, 8)),
    dict(prefix='module.')])
def test_what_fits_is_tested_without_a_word(change):
    """Counters, tables of other grids and data-parallel training's prefix are no gaps."""
    trained, model = Segmentor(), Segmentor()
    nn.init.ones_(trained.head.weight)
    assert load(model, state_of(trained, **change)) == []
    assert torch.equal(model.head.weight, trained.head.weight)
    bare = state_of(trained, **change)['state_dict']
    nn.init.zeros_(model.head.weight)
    assert load(model, bare) == [] and torch.equal(model.head.weight, trained.head.weight)


@pytest.mark.parametrize(('trained', 'message'), [
    (Segmentor(num_classes=5), r'2 have another shape: head\.weight is \[5, 8\] in the checkpoint and \[3, 8\] in the '
     r'model, head\.bias is \[5\] in the checkpoint and \[3\] in the model\. All of them are needed: give the'),
    (Segmentor(embed_dims=16), r'26 have another shape: backbone\.pos_embed is \[1, 17, 16\] .*, \.\.\.\. All'),
    (nn.Sequential(nn.Linear(2, 2)), r'\d\d parameters are missing: .*, \.\.\.; 2 are not in the model: 0\.weight'),
    (nn.ModuleDict(dict(backbone=Segmentor().backbone)), r'6 parameters are missing: norm\.weight, norm\.bias, '
     r'norm\.running_mean, norm\.running_var, head\.weight, \.\.\.\. All'),
])
def test_what_does_not_fit_stops_a_test(trained, message):
    for wrap in (lambda model: model, SegTTAWrapper):
        with pytest.raises(DataError, match=rf'^a\.pth does not fit the config, whose model has \d\d .*: {message}'):
            load(wrap(Segmentor()), state_of(trained))


class SegTTAWrapper(SegTTAModel):
    """Test-time augmentation around a model that is built."""

    def __init__(self, module):
        super().__init__(module)


def test_a_dense_checkpoint_in_a_config_with_apt():
    dense = Segmentor(**DENSE)
    (level, text), (_, more) = load(Segmentor(), state_of(dense))
    assert level == logging.WARNING and '4 parameters are missing: backbone.patch_embed.conv_down.weight, ' in text
    assert more.endswith('this tests merging without training')
    assert load(Segmentor(detail_branch='none'), state_of(dense)) == []
    (_, text), = load(dense, state_of(Segmentor()))
    assert 'a.pth and the model differ: 4 are not in the model: backbone.patch_embed.conv_down.weight, ' in text
    for branch in ('residual', 'nonzero'):  # random numbers would be added to every merged patch
        with pytest.raises(DataError, match='parameters are missing: backbone.patch_embed.conv_down.weight'):
            load(Segmentor(detail_branch=branch), state_of(dense))


def test_half_of_what_apt_adds_is_no_dense_model():
    trained = Segmentor()
    nn.init.ones_(trained.backbone.patch_embed.zero_mlp.weight)
    with pytest.raises(DataError, match=r'1 parameters are missing: backbone\.patch_embed\.conv_down\.weight'):
        load(Segmentor(), state_of(trained, backbone__patch_embed__conv_down__weight=None))
    dense = Segmentor(**DENSE)
    with pytest.raises(DataError, match='5 parameters are missing'):
        load(Segmentor(), state_of(dense, head__bias=None))


def test_training_goes_on_and_says_what_is_not_set():
    (level, text), = load(Segmentor(), state_of(Segmentor(num_classes=5), norm__bias=None, extra=torch.ones(1)), True)
    assert level == logging.WARNING and text.startswith(
        'a.pth and the model differ: 1 parameters are missing: norm.bias; 2 have another shape: head.weight is [5, 8] '
        'in the checkpoint and [3, 8] in the model, head.bias is [5] in the checkpoint and [3] in the model; 1 are not '
        'in the model: extra. What the checkpoint does not set keeps its initial value')
    (level, text), = load(Segmentor(), state_of(Segmentor(**DENSE)), True)
    assert level == logging.INFO and '4 parameters are missing' in text  # the short fine-tuning's way


@pytest.mark.parametrize('train', [False, True])
def test_settings_of_merging_that_it_was_not_trained_with(train):
    """No parameter shows them; of a dense model's training they say nothing."""
    model, state = Segmentor(), state_of(Segmentor())

    def told(then: dict, **now) -> list[str]:
        meta = dict(cfg=Config(dict(model=dict(backbone={**BACKBONE, **then}))).pretty_text)
        return [text for _, text in load(model, {**state, 'meta': meta}, train, **now)]

    assert told({}) == told(dict(scorer='entropy'), thresholds=(7.0,)) == told({}, rope_anchor='corner') == []
    assert told(dict(proportional_attention=True)) == [
        'backbone.proportional_attention is False here and was True in the training of a.pth: the config\'s holds']
    assert len(told(dict(scorer='variance'), proportional_attention=True, rope_anchor='center')) == 3
    assert told(DENSE, proportional_attention=True) == told(dict(proportional_attention=True), **DENSE) == []
    assert [text for _, text in load(model, {**state, 'meta': dict(cfg='nothing to read(')}, train)] == []


def test_weights_to_measure(tmp_path):
    torch.save(state_of(Segmentor()), tmp_path / 'same.pth')
    torch.save(state_of(Segmentor(num_classes=5)), tmp_path / 'other.pth')
    load_weights(Segmentor(), str(tmp_path / 'same.pth'))
    with pytest.raises(DataError, match=r'other\.pth does not fit the config'):
        load_weights(Segmentor(), str(tmp_path / 'other.pth'))
    load_weights(Segmentor(), str(tmp_path / 'same.pth'))


@pytest.mark.parametrize('train', [False, True])
def test_weights_of_a_training_that_had_diverged(train, tmp_path):
    """What they find is nothing, without a word."""
    nan = state_of(Segmentor(), head__bias=torch.tensor([0.0, torch.nan, 1.0]))
    said = r'a\.pth has NaN or infinity in 1 parameters: head\.bias\. It was saved after its training had diverged'
    with pytest.raises(DataError, match=said):
        load(Segmentor(), nan, train)
    torch.save(nan, tmp_path / 'a.pth')
    with pytest.raises(DataError, match=said):
        load_weights(Segmentor(), str(tmp_path / 'a.pth'))
    with pytest.raises(DataError, match='has NaN or infinity'):
        load(Segmentor(), state_of(Segmentor(), head__bias=torch.tensor([0.0, torch.inf, 1.0])), train)
    # Buffers may say something by it, and what has no place in the model does not matter.
    load(Segmentor(), state_of(Segmentor(), norm__running_mean=torch.full((8,), torch.nan),
                               other__mean=torch.tensor(torch.nan)), True)


def runner_of(tmp_path, checkpoint: dict, **settings):
    """A runner of the toy, made as the tools make it, with a checkpoint to load."""
    torch.save(checkpoint, tmp_path / 'a.pth')
    cfg = toy_config(tmp_path / f'work{next(RUNS)}', load_from=str(tmp_path / 'a.pth'), **settings)
    cfg.update(test_dataloader=cfg.val_dataloader, test_cfg={}, test_evaluator=cfg.val_evaluator)
    cfg.experiment_name = cfg.visualizer.name = f'loading_{next(RUNS)}'
    return launch.build_runner(cfg)


@METRICS.register_module()
class PredictionsMetric(ToyMetric):
    """Returns the first prediction."""

    def process(self, data_batch, data_samples):
        self.results.append(data_samples[0].item())

    def compute_metrics(self, results):
        return {'first': results[0]}


ONES = {'layer.weight': torch.ones(1, 3), 'layer.bias': torch.ones(1)}  # 1 for the first image, which is 0


@pytest.mark.parametrize('ema', [False, True])
@pytest.mark.parametrize('checkpoint', [
    {'state_dict': ONES}, ONES, {'state_dict': {f'module.{name}': value for name, value in ONES.items()}},
    {'state_dict': ONES, 'ema_state_dict': {f'module.{name}': 0 * value for name, value in ONES.items()}}])
def test_the_weights_that_are_tested(tmp_path, ema, checkpoint):
    """Those of the checkpoint, averaged if it was written so, whatever holds them; EMAHook's copy has them too."""
    runner = runner_of(tmp_path, checkpoint, custom_hooks=[dict(type='EMAHook')] if ema else [],
                       val_evaluator=dict(type='PredictionsMetric'))
    assert runner.test() == {'first': 1.0}


def log_of(runner) -> str:
    return next(Path(runner.log_dir).glob('*.log')).read_text()


def test_a_test_ends_with_one_message(tmp_path, capsys):
    runner = runner_of(tmp_path, {'state_dict': {'layer.weight': torch.ones(2, 3)}})
    assert launch.run_tool(runner.test) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: {tmp_path}/a.pth does not fit the config, whose model has 2 parameters: 1 '
                           'parameters are missing: layer.bias; 1 have another shape: layer.weight is [2, 3] in the ')


def test_a_training_has_the_gaps_in_its_log_file(tmp_path):
    runner = runner_of(tmp_path, {'state_dict': {'layer.weight': torch.ones(1, 3), 'other': torch.ones(1)}})
    runner.train()
    assert 'WARNING' in log_of(runner)
    assert (f'{tmp_path}/a.pth and the model differ: 1 parameters are missing: layer.bias; 1 are not in the model: '
            'other. What') in log_of(runner)
    assert sum(type(hook).__name__ == 'CheckLoadedHook' for hook in runner.hooks) == 1
    cfg = runner.cfg  # as the run has written it
    assert sum(hook.type == 'CheckLoadedHook' for hook in launch.build_runner(cfg).cfg.custom_hooks) == 1
