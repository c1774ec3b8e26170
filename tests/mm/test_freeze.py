"""Training a few parameters and freezing the rest."""
import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

import apt_dense.mm.det  # noqa: F401
from apt_dense.mm.freeze import FreezeMixin

ADDED = ['backbone.patch_embed.conv_down', 'backbone.patch_embed.zero_mlp']


class Toy(nn.Module):

    def __init__(self, width: int = 4):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.5))
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        return self.head(self.stem(x))


class FreezableToy(FreezeMixin, Toy):
    pass


def test_frozen_parts_do_not_change():
    model = FreezableToy(width=4, trainable=['head'])
    model.train()
    assert model.training and model.head.training
    assert not any(module.training for module in model.stem.modules())
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [
        'head.weight', 'head.bias']
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith('stem'), name


def test_without_trainable_nothing_is_frozen():
    model = FreezableToy()
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.eval()
    model.train()
    assert all(module.training for module in model.modules())


def test_modules_without_parameters_follow_their_parent():
    model = FreezableToy(trainable=['stem.0'])
    model.train()
    assert model.stem[2].training and model.stem[0].training and not model.stem[1].training


def test_eval_mode_is_for_all():
    model = FreezableToy(trainable=['head'])
    model.train()
    model.eval()
    assert not any(module.training for module in model.modules())


def test_a_prefix_that_matches_nothing(tiny_config):
    with pytest.raises(ValueError, match=r"no parameter begins with \['neck.lateral'\]"):
        MODELS.build(dict(tiny_config().model, trainable=['neck.lateral', *ADDED]))
    resizing = tiny_config().model
    resizing.backbone.detail_branch = 'none'
    with pytest.raises(ValueError, match="no parameter begins with .*conv_down.*detail_branch other than 'none'"):
        MODELS.build(dict(resizing, trainable=ADDED))


def test_a_detector_trains_the_added_parameters_only(tiny_config):
    cfg = tiny_config().model
    cfg.backbone.drop_path_rate = 0.5
    model = MODELS.build(dict(cfg, trainable=ADDED))
    model.train()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f'{prefix}.{kind}' for prefix in ADDED for kind in ('weight', 'bias')}
    assert not any(block.drop_path.training for block in model.backbone.blocks)
    assert model.backbone.patch_embed.zero_mlp.training
