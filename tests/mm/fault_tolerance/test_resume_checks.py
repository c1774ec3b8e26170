"""What a resumed run takes from the checkpoint against the config is said; what does not fit is refused by name."""
import logging
import re

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS
from torch import nn

from apt_dense.mm.cli import launch, start
from apt_dense.mm.errors import DataError
from apt_dense.mm.fault_tolerance import resume_checks
from tests.mm.toys import ToyRegressor, run_toy

EMA = dict(type='EMAHook', momentum=0.1)
SETTINGS = dict(optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)), param_scheduler=[
    dict(type='LinearLR', by_epoch=False, end=2), dict(type='CosineAnnealingLR', by_epoch=False, T_max=10)])


@MODELS.register_module()
class ToyClassifier(ToyRegressor):
    """Several outputs, and parts that may be left out or frozen."""

    def __init__(self, outputs=1, scale=False, frozen=()):
        super().__init__()
        self.layer = nn.Linear(3, outputs)
        if scale:
            self.scale = nn.Parameter(torch.ones(()))
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in frozen)


@pytest.fixture
def warnings_logged(monkeypatch):
    """The messages of the log's warnings that say what to do about a setting."""
    messages = []
    monkeypatch.setattr('mmengine.logging.MMLogger.callHandlers', lambda self, record: messages.append(
        record.getMessage()) if record.levelno == logging.WARNING and 'load_from=' in record.getMessage() else None)
    return messages


def resumed(folder, **settings):
    return run_toy(folder, resume='iter_8.pth', **dict(SETTINGS, **settings))


def adamw(**settings):
    return dict(optim_wrapper=dict(optimizer=dict(dict(type='AdamW', lr=0.01), **settings)))


def schedule(*changed, linear=None):
    linear = linear or dict(type='LinearLR', by_epoch=False, end=2)
    return dict(param_scheduler=[linear, *changed])


COSINE = dict(type='CosineAnnealingLR', by_epoch=False, T_max=10)
HOLDS = r"when the checkpoint was written: the config's holds from here on"


@pytest.mark.parametrize(('settings', 'lines'), [
    ({}, []),
    (adamw(lr=0.5), [r'optim_wrapper\.optimizer\.lr is 0\.5 in the config and 0\.01 in the checkpoint, which is kept']),
    (adamw(weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6), [
        r'optimizer\.betas is \(0\.8, 0\.9\) in the config and \(0\.9, 0\.999\)', r'optimizer\.eps is 1e-06',
        r'optimizer\.weight_decay is 0\.3 in']),
    (adamw(betas=[0.9, 0.999]), []),
    (schedule(dict(COSINE, T_max=20, eta_min=0.001)), [
        r'param_scheduler\.1\.T_max is 20 in the config and 10', r'scheduler\.1\.eta_min is 0\.001']),
    (schedule(dict(type='MultiStepLR', by_epoch=False, milestones=[4])), [
        r'param_scheduler\.1 is a MultiStepLR in the config and of another type in the checkpoint']),
    (schedule(dict(COSINE, end=8)), [r'scheduler\.1\.end is 8 in the config and 10 in']),
    (schedule(), [r'param_scheduler has 1 schedules in the config and 2 in the checkpoint']),
    (schedule(COSINE, COSINE), [r'param_scheduler has 3 schedules in the config and 2 in the checkpoint']),
    (dict(train_cfg=dict(by_epoch=False, max_iters=14, val_interval=5)), [
        r'scheduler\.1\.end is 14 in the config and 10',  # mmengine's default is the length of the training
        rf"train_cfg\.max_iters is 14 in the config and was 10 {HOLDS}, while the schedule is the checkpoint's"]),
    (dict(custom_hooks=[dict(EMA, momentum=0.3)]), [rf'EMAHook\.momentum is 0\.3 in the config and was 0\.1 {HOLDS}']),
    (dict(custom_hooks=[]), [r'holds averaged weights and the config has no EMAHook: the averages are trained on']),
])
def test_each_setting_that_differs_has_its_line(tmp_path, warnings_logged, settings, lines):
    run_toy(tmp_path, custom_hooks=[EMA], **SETTINGS)
    assert not warnings_logged
    resumed(tmp_path, **dict(dict(custom_hooks=[EMA]), **settings))
    assert len(warnings_logged) == len(lines), warnings_logged
    for line in lines:
        found, = (text for text in warnings_logged if re.search(line, text))
        assert found.endswith(f'. To train with this config from its weights: --cfg-options load_from={tmp_path}/iter'
                              '_8.pth and another --work-dir, without --resume')


def test_settings_of_single_groups(tmp_path, warnings_logged):
    """As with layer-wise decay: one line, which counts the groups that differ."""
    def wrapper(bias_lr_mult, **optimizer):
        return dict(param_scheduler=None, optim_wrapper=dict(
            optimizer=dict(dict(type='SGD', lr=0.01, momentum=0.9), **optimizer),
            paramwise_cfg=dict(bias_lr_mult=bias_lr_mult)))

    run_toy(tmp_path, **wrapper(2.0))
    run_toy(tmp_path, resume='iter_8.pth', **wrapper(3.0))
    line, = warnings_logged
    assert line.startswith('optim_wrapper.optimizer.lr is 0.03 in the config and 0.02 in the checkpoint, which is kept '
                           '(of group 1; 1 of 2 groups differ). ')
    warnings_logged.clear()
    run_toy(tmp_path, resume='iter_8.pth', **wrapper(2.0, momentum=0.5))
    line, = warnings_logged
    assert '.momentum is 0.5 in the config and 0.9 in the checkpoint, which is kept (of group 0; 2 of 2 g' in line


def test_a_checkpoint_without_optimiser(tmp_path, warnings_logged):
    hooks = dict(logger=None, checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4, save_optimizer=False))
    run_toy(tmp_path, default_hooks=hooks)
    run_toy(tmp_path, resume='iter_8.pth', default_hooks=hooks)
    assert [line.split('.')[0] for line in warnings_logged] == [
        'the checkpoint holds no optimiser state: the moments start anew']


def test_a_checkpoint_that_says_nothing_of_its_settings(tmp_path, warnings_logged):
    """Of an earlier version, or of mmengine's own hooks."""
    run_toy(tmp_path, **SETTINGS)
    content = torch.load(tmp_path / 'iter_8.pth')
    del content['resume']
    torch.save(content, tmp_path / 'iter_8.pth')
    settings = dict(SETTINGS, **adamw(lr=0.5), custom_hooks=[EMA])
    run_toy(tmp_path, resume='iter_8.pth', **settings)
    assert [line.split(' is ')[0] for line in warnings_logged] == ['optim_wrapper.optimizer.lr']


class Scaler:
    """The settings among torch's GradScaler's state."""

    def state_dict(self):
        return dict(scale=8.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=100, _growth_tracker=3)


def test_several_optimisers_and_a_loss_scaler():
    wrappers = {name: OptimWrapper(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)) for name in 'ab'}
    wrappers['b'].loss_scaler = Scaler()
    stored = {name: wrapper.state_dict() for name, wrapper in wrappers.items()}
    stored['b'] = dict(stored['b'], loss_scaler=dict(Scaler().state_dict(), scale=2.0, growth_interval=2000))
    stored['a']['param_groups'][0]['lr'] = 0.2

    class Runner:
        optim_wrapper, param_schedulers, hooks = OptimWrapperDict(**wrappers), dict(a=[], b=[]), []

    lines = [line for key, wrapper in resume_checks._optimizers(Runner)
             for line in resume_checks._optimizer_lines(f'optim_wrapper.{key}.', wrapper, stored[key])]
    assert lines == ['optim_wrapper.a.optimizer.lr is 0.1 in the config and 0.2 in the checkpoint, which is kept',
                     'optim_wrapper.b.loss_scale.growth_interval is 100 in the config and 2000 in the checkpoint, '
                     'which is kept']


@pytest.mark.parametrize(('before', 'now', 'line'), [
    ({}, ['layer.bias'], '1 parameters are frozen here and were trained when the checkpoint was written: layer.bias'),
    (['layer.bias'], {}, '1 parameters are trained here, with moments that start anew, and were frozen when ')])
def test_what_is_trained_has_changed(tmp_path, warnings_logged, before, now, line):
    run_toy(tmp_path, **model(frozen=before))
    run_toy(tmp_path, resume='iter_8.pth', **model(frozen=now))
    assert len(warnings_logged) == 1 and warnings_logged[0].startswith(line)


def model(**settings):
    return dict(model=dict(type='ToyClassifier', **settings))


@pytest.mark.parametrize('ema', [False, True])
@pytest.mark.parametrize(('before', 'now', 'message'), [
    (dict(outputs=3), dict(outputs=2), r'2 parameters have another shape: layer\.weight is \(3, 3\) in the checkpoint '
     r'and \(2, 3\) here, layer\.bias is \(3,\) in the checkpoint and \(2,\) here\. To train with this config'),
    ({}, dict(scale=True), r'1 parameters are missing: scale\. To train with this config from its weights: '),
    (dict(scale=True), {}, r'its optimiser has 3 parameters in 1 groups, and this one 2 in 1; 1 are trained only '
     r'there: scale\. To train'),
])
def test_another_model_is_refused_by_name(tmp_path, capsys, ema, before, now, message):
    hooks = dict(custom_hooks=[EMA]) if ema else {}
    run_toy(tmp_path, **model(**before), **hooks)

    def main():
        run_toy(tmp_path, resume='iter_8.pth', **model(**now), **hooks)

    with pytest.raises(DataError, match=rf'iter_8\.pth is of another training and cannot be resumed: {message}'):
        main()
    capsys.readouterr()
    assert launch.run_tool(main) == 2
    printed = capsys.readouterr().err
    assert printed.startswith('error: ') and printed.count('\n') == 1


@pytest.mark.parametrize(('names', 'message'), [
    (True, r'its optimiser has 2 parameters in 1 groups, and this one 2 in 1; they are grouped or ordered oth'),
    (False, r'2 optimiser states have another shape: layer\.weight, layer\.bias')])
def test_an_optimiser_in_another_order_is_refused(tmp_path, names, message):
    run_toy(tmp_path)
    content = torch.load(tmp_path / 'iter_8.pth')
    if names:
        content['resume']['trained'][''][0].reverse()
    else:
        del content['resume']
        states = content['optimizer']['state']
        states[0], states[1] = states[1], states[0]
    torch.save(content, tmp_path / 'iter_8.pth')
    with pytest.raises(DataError, match=message):
        run_toy(tmp_path, resume='iter_8.pth')


def test_weights_alone_cannot_be_resumed(tmp_path):
    torch.save({'state_dict': ToyRegressor().state_dict()}, tmp_path / 'dense.pth')
    with pytest.raises(DataError, match=r'dense\.pth holds weights and no state of a training, so there is nothing '
                                        r'to resume\. To train with this config from its weights: --cfg-options load'):
        run_toy(tmp_path, resume='dense.pth')


def test_the_checkpoints_seed_is_kept(tmp_path, capsys):
    run_toy(tmp_path)
    for seed, said in ((None, False), (3, False), (4, True)):
        cfg = launch.Config(dict(work_dir=str(tmp_path), randomness=dict(seed=seed)))
        start.set_start(cfg, 'auto')
        assert cfg.randomness.seed == 3
        line = 'randomness.seed is 4 in the config and 3 in the checkpoint, which is kept'
        assert (line in capsys.readouterr().out) == said
