"""Tensors made of parameters are made once, and never stale."""
import copy
import pickle

import pytest
import torch
from torch import nn

from apt_dense import APTEVA02
from apt_dense.core.derived import DerivedTensors

from .test_eva02 import CLASS_TOKEN, MIXED, TOY
from .toys import image_of, normalise, toy_model


class Doubled(nn.Module):
    """Doubles its parameter; counts how often."""

    def __init__(self, most: int = 2):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.derived = DerivedTensors(most)
        self.made = 0

    def forward(self, key: str = 'a') -> torch.Tensor:
        return self.derived.get(key, [self.weight], self._make)

    def _make(self) -> torch.Tensor:
        self.made += 1
        return self.weight * 2


@torch.no_grad()
def test_made_once():
    model = Doubled()
    for _ in range(3):
        assert torch.equal(model(), torch.full((3,), 2.0))
    assert model.made == 1
    model('b'), model('a'), model('b'), model('c')  # a is the oldest
    assert model.made == 3
    model('b'), model('c')
    assert model.made == 3
    model('a')
    assert model.made == 4


def write_data(model):
    """As averages of weights are swapped in: it counts no version up, so that only eval() tells."""
    model.weight.data.fill_(5)
    model.eval()


def other_memory(model):
    model.weight.data = torch.full((3,), 5.0)


CHANGES = {
    'in place': lambda model: model.weight.fill_(5),
    'a step': lambda model: torch.optim.SGD([model.weight], lr=1.0).step() if setattr(
        model.weight, 'grad', torch.full((3,), -4.0)) is None else None,
    'another state': lambda model: model.load_state_dict({'weight': torch.full((3,), 5.0)}),
    'averages': write_data,
    'other memory': other_memory,
    'another parameter': lambda model: setattr(model, 'weight', nn.Parameter(torch.full((3,), 5.0))),
}


@pytest.mark.parametrize('name', CHANGES)
def test_made_again_after_a_change(name):
    model = Doubled()
    with torch.no_grad():
        model()
        CHANGES[name](model)
        assert model().tolist() == [10, 10, 10] and model.made == 2


@torch.no_grad()
def test_made_again_in_another_precision():
    model = Doubled()
    model()
    assert model.double()().dtype == torch.float64


def test_gradients_flow():
    model = Doubled()
    for count in (1, 2):
        model().sum().backward()
        assert model.made == count and model.weight.grad.tolist() == [2 * count] * 3
    model.requires_grad_(False)
    assert model() is model() and model.made == 3  # a frozen parameter in training


def test_inference_mode_leaves_nothing_that_training_cannot_use():
    model = Doubled()
    with torch.inference_mode():
        model()
    model.weight.requires_grad_(False)
    scale = torch.ones(3, requires_grad=True)
    (model() * scale).sum().backward()
    assert model.made == 1 and scale.grad.tolist() == [2, 2, 2]


@pytest.mark.parametrize('make_copy', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_copies_and_files_hold_none(make_copy):
    model = Doubled()
    model()
    other = make_copy(model)
    assert not other.derived._kept and list(other.state_dict()) == ['weight']
    model.weight.fill_(5)
    assert other().tolist() == [2, 2, 2]


@pytest.mark.parametrize('settings', [TOY, CLASS_TOKEN], ids=['windows', 'class_token'])
def test_position_tables_are_resampled_once_a_grid(settings, monkeypatch):
    model, x, calls = toy_model(**settings), normalise(image_of(MIXED)), []
    resample = APTEVA02.position_table
    monkeypatch.setattr(APTEVA02, 'position_table', lambda *args: calls.append(1) or resample(*args))
    with torch.no_grad():
        wanted = model(x)[0]
        assert torch.equal(model(x)[0], wanted) and len(calls) == 1
        model.pos_embed.add_(1)
        assert not torch.equal(model(x)[0], wanted) and len(calls) == 2
        model(x[..., :32])
        assert len(calls) == 3
    model.train()(x)
    assert len(calls) == 4
    model(x)[0].sum().backward()  # once a pass
    assert len(calls) == 5 and model.pos_embed.grad.abs().sum() > 0
