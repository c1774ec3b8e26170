"""Training a few parameters and freezing the rest."""
import logging
import re

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

import apt_dense.mm.det  # noqa: F401
from apt_dense.mm.errors import LaunchError
from apt_dense.mm.models.freeze import FreezeMixin
from apt_dense.mm.seg import APTEncoderDecoder
from apt_dense.mm.training.sync_bn import CPUDistributedDataParallel
from tests.mm.conftest import ADDED


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


@pytest.mark.parametrize(('change', 'trainable', 'absent'), [
    ({}, ['neck.lateral', *ADDED], "['neck.lateral']"),
    (dict(detail_branch='none'), ADDED, f'{ADDED}'),
    (dict(num_scales=1, thresholds=()), ADDED, f'{ADDED}')], ids=['typo', 'resizing', 'dense'])
def test_a_prefix_that_matches_nothing_forbids_training_alone(change, trainable, absent, tiny_config, caplog):
    logger = MMLogger.get_instance(f'prefix {change}')
    logger.addHandler(caplog.handler)
    cfg = tiny_config().model
    cfg.backbone.update(change)
    model = MODELS.build(dict(cfg, trainable=trainable))
    wanted = f'and no parameter begins with {absent}. Parameters added by APT exist with num_scales > 1 and a detail_'
    assert [record.levelname for record in caplog.records if wanted in record.getMessage()] == ['WARNING']
    assert not model.eval().training
    with pytest.raises(LaunchError, match=re.escape(wanted)):
        model.train()


def test_nothing_to_train_forbids_training(tiny_config):
    model = MODELS.build(dict(tiny_config().model, trainable=[]))
    assert not model.eval().training
    with pytest.raises(LaunchError, match=r'trainable=\[\] trains nothing: name parameters'):
        model.train()


@pytest.mark.own_device  # gloo, on a CPU
def test_a_model_without_a_parameter_to_train_is_tested_by_several_processes(tmp_path):
    """torch's data-parallel wrapper refuses a model in which everything is frozen."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/processes', rank=0, world_size=1)
    try:
        model = CPUDistributedDataParallel(FreezableToy(trainable=['no']))
        assert model.eval()(torch.randn(8, 4)).shape == (8, 1)
        with pytest.raises(LaunchError, match=r"no parameter begins with \['no'\]"):
            model.train()
    finally:
        torch.distributed.destroy_process_group()


def test_a_detector_trains_the_added_parameters_only(tiny_config):
    cfg = tiny_config().model
    cfg.backbone.drop_path_rate = 0.5
    model = MODELS.build(dict(cfg, trainable=ADDED))
    model.train()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f'{prefix}.{kind}' for prefix in ADDED for kind in ('weight', 'bias')}
    assert not any(block.drop_path.training for block in model.backbone.blocks)
    assert model.backbone.patch_embed.zero_mlp.training


def test_a_norm_without_parameters_keeps_its_statistics():
    """It belongs to no frozen parameter, and its parent trains."""
    model = FreezableToy(trainable=['head'])
    model.head = nn.Sequential(model.head, nn.Sequential(nn.BatchNorm1d(1, affine=False)), nn.Dropout(0.5))
    model.train()
    model(torch.randn(8, 4))
    norm = model.head[1][0]
    assert not norm.training and norm.num_batches_tracked == 0 and norm.running_mean == 0
    assert model.head[2].training


def test_the_log_lists_what_is_trained(caplog):
    logger = MMLogger.get_instance('test_the_log_lists_what_is_trained')
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        FreezableToy(width=4, trainable=['head'])
    # 4 * 4 + 4 of the first layer, 4 + 4 of the norm, 4 + 1 of the head
    assert [record.getMessage() for record in caplog.records] == [
        'training 5 of 33 parameters, all others are frozen: head.weight, head.bias']


def segmentor() -> nn.Module:
    """A tiny APT UperNet with batch norms, dropout and drop path, of which APT's additions are trained."""
    norm, dims = dict(type='SyncBN', requires_grad=True), 16
    backbone = dict(type='APTEVA02', img_size=64, embed_dims=dims, depth=2, num_heads=2, window_size=0,
                    global_block_indexes=(0, 1), out_indices=(0, 1), with_cls_token=True, pretrain_img_size=64,
                    drop_path_rate=0.5, num_scales=2, thresholds=(9.0,))
    cfg = Config(dict(
        backbone=backbone, trainable=ADDED, train_cfg=dict(), test_cfg=dict(mode='whole'),
        decode_head=dict(type='mmseg.FCNHead', _scope_='mmseg', in_channels=dims, in_index=1, channels=8, num_convs=1,
                         num_classes=3, dropout_ratio=0.5, norm_cfg=norm),
        auxiliary_head=dict(type='mmseg.FCNHead', _scope_='mmseg', in_channels=dims, in_index=0, channels=8,
                            num_convs=1, num_classes=3, norm_cfg=norm)))
    return revert_sync_batchnorm(APTEncoderDecoder(**cfg))


def test_a_segmentor_changes_nothing_outside():
    """Gradients, optimiser state, weights and the batch norms' statistics, after three steps with weight decay."""
    model = segmentor()
    model.train()
    assert not any(isinstance(module, (nn.BatchNorm2d, nn.Dropout2d)) and module.training
                   for module in model.modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert any(name.endswith('running_var') for name in before)
    wrapper = build_optim_wrapper(model, dict(optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.5),
                                              clip_grad=dict(max_norm=1.0)))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(3, (1, 64, 64)))) for _ in range(2)]
    for _ in range(3):
        losses = model.loss(torch.rand(2, 3, 1, 1).expand(2, 3, 64, 64), samples)
        wrapper.update_params(model.parse_losses(losses)[0])
    parameters = dict(model.named_parameters())
    trained = {f'{prefix}.{kind}' for prefix in ADDED for kind in ('weight', 'bias')}
    assert {id(parameter) for parameter in wrapper.optimizer.state} == {id(parameters[name]) for name in trained}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in trained), name
    assert all(parameters[name].grad is None for name in parameters.keys() - trained)
