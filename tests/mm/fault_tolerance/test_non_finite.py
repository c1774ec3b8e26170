"""Losses and gradients that are not finite never reach the weights, and name their files."""
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from apt_dense.mm.fault_tolerance.bad_data import BadDataHook


class Regression(BaseModel):
    """The inputs of the image named nan.jpg become NaN, the gradient of that named inf.jpg infinite."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.layer = nn.Linear(3, 1)

    def forward(self, inputs, data_samples, mode='tensor'):
        inputs = torch.stack(inputs)
        names = [sample.img_path for sample in data_samples]
        if 'nan.jpg' in names:
            inputs = inputs * float('nan')
        output = self.layer(self.norm(torch.cat([inputs, inputs + 1])))
        if 'nan.jpg' in names:
            return dict(loss=[output.mean()])
        if 'inf.jpg' in names:
            return dict(loss=(output - output.detach()).abs().sqrt().mean())
        return dict(loss=(output - 1).square().mean(), acc=output.detach().mean())


@OPTIM_WRAPPERS.register_module(force=True)
class CPUScalerOptimWrapper(OptimWrapper):
    """float16's loss scaler as AmpOptimWrapper uses it, which wants a GPU."""

    def __init__(self, init_scale=1024.0, enabled=True, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=init_scale, enabled=enabled)

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        self.loss_scaler.unscale_(self.optimizer)
        if self.clip_grad_kwargs:
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()


def train(work_dir, names: list[str], on_nan='raise', max_in_a_row=10, **wrapper) -> SimpleNamespace:
    """Train one image a step; returns the runner, the hook, and weights and batch statistics after each step."""
    data = [dict(inputs=torch.full((3,), float(index % 3)), data_samples=BaseDataElement(metainfo=dict(img_path=name)))
            for index, name in enumerate(names)]
    weights, statistics, hook = [], [], BadDataHook(on_nan, max_in_a_row)
    runner = Runner(
        Regression(), work_dir=str(work_dir), experiment_name=str(work_dir), default_scope='mmengine',
        train_dataloader=dict(dataset=data, batch_size=1, num_workers=0,
                              sampler=dict(type='InfiniteSampler', shuffle=False)),
        train_cfg=dict(by_epoch=False, max_iters=len(names)), log_processor=dict(by_epoch=False), log_level='WARNING',
        optim_wrapper=dict(dict(optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.1)), **wrapper),
        custom_hooks=[hook])
    runner.model.register_forward_hook(
        lambda model, *_: weights.append(model.layer.weight.detach().clone()))
    runner.model.register_forward_pre_hook(lambda model, *_: statistics.append(statistics_of(model)))
    result = SimpleNamespace(runner=runner, hook=hook, weights=weights, statistics=statistics)
    try:
        runner.train()
    except FloatingPointError as error:
        result.error = str(error)
    weights.append(runner.model.layer.weight.detach().clone())
    statistics.append(statistics_of(runner.model))
    return result


def statistics_of(model: Regression) -> torch.Tensor:
    return torch.stack([model.norm.running_mean, model.norm.running_var])


@pytest.mark.parametrize('bad', ['nan.jpg', 'inf.jpg'])
@pytest.mark.parametrize('wrapper', [{}, dict(clip_grad=dict(max_norm=1.0)), dict(type='BF16OptimWrapper')])
def test_a_loss_that_is_not_finite_stops_with_the_file(bad, wrapper, tmp_path):
    result = train(tmp_path, ['a.jpg', 'b.jpg', bad, 'c.jpg'], **wrapper)
    what = 'a loss that is' if bad == 'nan.jpg' else 'gradients that are'
    assert result.error.startswith(f'{what} not finite; images: {bad}. The weights are as they were before')
    assert result.weights[-1].isfinite().all() and torch.equal(result.weights[-1], result.weights[-2])
    assert not torch.equal(result.weights[0], result.weights[1])


@pytest.mark.parametrize('bad', ['nan.jpg', 'inf.jpg'])
def test_a_step_that_is_not_finite_is_left_out(bad, tmp_path):
    """The run continues as if the bad step had not been."""
    result = train(tmp_path / 'bad', ['a.jpg', 'b.jpg', 'c.jpg', bad, 'd.jpg', 'e.jpg'], on_nan='skip')
    assert result.hook.num_skipped_steps == 1
    assert torch.equal(result.weights[3], result.weights[4])
    assert torch.equal(result.statistics[3], result.statistics[4])
    assert all(values.isfinite().all() for values in (*result.weights, *result.statistics))
    assert not torch.equal(result.weights[4], result.weights[5])
    assert not torch.equal(result.statistics[4], result.statistics[5])
    log = next((tmp_path / 'bad').rglob('*.log')).read_text()
    assert 'optimiser step skipped (1 so far): ' in log and f'images: {bad}' in log
    assert 'skipped so far: 0 bad samples, 1 optimiser steps' in log


def test_accumulation_leaves_out_the_whole_step_and_names_the_batch(tmp_path):
    result = train(tmp_path, ['a.jpg', 'b.jpg', 'nan.jpg', 'c.jpg', 'd.jpg', 'e.jpg'], on_nan='skip',
                   accumulative_counts=2)
    changed = [not torch.equal(*pair) for pair in zip(result.weights, result.weights[1:], strict=False)]
    assert changed == [False, True, False, False, False, True]
    assert torch.equal(result.statistics[2], result.statistics[4]), 'as at the last step'
    assert result.statistics[-1].isfinite().all() and not torch.equal(result.statistics[4], result.statistics[5])
    assert result.hook.num_skipped_steps == 1
    assert 'images: nan.jpg\n' in next(tmp_path.rglob('*.log')).read_text()


@pytest.mark.parametrize('names', [['a.jpg', 'nan.jpg', 'b.jpg'], ['nan.jpg', 'nan.jpg', 'nan.jpg']])
def test_a_loss_scaler_does_not_hide_a_loss(names, tmp_path):
    """It skips the step itself, and would go on for ever with an ever smaller scale."""
    result = train(tmp_path, names, on_nan='skip', max_in_a_row=3, type='CPUScalerOptimWrapper')
    assert result.hook.num_skipped_steps == names.count('nan.jpg')
    assert all(values.isfinite().all() for values in (*result.weights, *result.statistics))
    assert hasattr(result, 'error') == (names.count('nan.jpg') == 3)


def test_many_in_a_row_are_not_the_data(tmp_path):
    result = train(tmp_path, ['a.jpg', 'nan.jpg', 'b.jpg', *['nan.jpg'] * 3], on_nan='skip', max_in_a_row=3)
    assert result.error.startswith('3 optimiser steps in a row were skipped: this is not the data')


@pytest.mark.parametrize('wrapper', [{}, dict(type='CPUScalerOptimWrapper'),
                                     dict(type='CPUScalerOptimWrapper', enabled=False)])
def test_the_ranks_agree_once_a_step(wrapper, tmp_path, monkeypatch):
    """Each time is a collective and a wait for the GPU."""
    calls, agree = [], BadDataHook._any_rank
    monkeypatch.setattr(BadDataHook, '_any_rank', staticmethod(lambda finite: calls.append(1) or agree(finite)))
    train(tmp_path, ['a.jpg', 'b.jpg', 'c.jpg'], **wrapper)
    assert len(calls) == 3


@pytest.mark.parametrize('bad', ['nan.jpg', 'inf.jpg'])
def test_bfloat16_on_a_gpu_has_a_disabled_scaler(bad, tmp_path):
    """It passes over nothing: what is not finite is found before the step, as without a scaler."""
    result = train(tmp_path, ['a.jpg', 'b.jpg', bad, 'c.jpg'], type='CPUScalerOptimWrapper', enabled=False)
    assert 'not finite; images: ' + bad in result.error
    assert torch.equal(result.weights[-1], result.weights[-2])
