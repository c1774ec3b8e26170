"""Sharded training as far as a machine without GPUs can tell: the config, the units, the runner that it needs."""
import math

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import FUNCTIONS, MODELS, RUNNERS, STRATEGIES, DefaultScope
from torch import nn

import apt_dense.mm.det
import apt_dense.mm.seg  # noqa: F401
from apt_dense.mm.fault_tolerance import make_fault_tolerant
from apt_dense.mm.fault_tolerance.run_comparison import logged
from apt_dense.mm.training.fsdp import wrap_transformer_blocks
from tests.mm.conftest import CONFIGS, point_to


def sharded(name: str, tmp_path) -> Config:
    """A leaf config with the strategy among its bases."""
    bases = [str(CONFIGS / f'{name}.py'), str(CONFIGS / '_base_/strategies/fsdp.py')]
    (tmp_path / 'sharded.py').write_text(
        f"_base_ = {bases}\noptim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', use_fsdp=True)\n")
    return Config.fromfile(tmp_path / 'sharded.py')


def test_the_strategy_builds(tmp_path):
    cfg = sharded('apt_eva02_l_coco_full', tmp_path)
    assert RUNNERS.get(cfg.runner_type).__name__ == 'FlexibleRunner'
    strategy = STRATEGIES.build(dict(cfg.strategy, work_dir=str(tmp_path), experiment_name='sharded'))
    assert type(strategy).__name__ == 'FSDPStrategy' and strategy._is_full_state_dict()
    assert FUNCTIONS.get(cfg.strategy.model_wrapper.auto_wrap_policy) is wrap_transformer_blocks
    assert cfg.optim_wrapper.optimizer.lr == 5e-5 and cfg.optim_wrapper.use_fsdp


@pytest.mark.parametrize(('name', 'depth'), [('apt_eva02_l_coco_full', 24), ('apt_eva02_b_coco', 12),
                                             ('apt_eva02_b_ade20k_512_full', 12)])
def test_the_blocks_are_the_units(name, depth):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = MODELS.build(cfg.model)
    modules = dict(model.named_modules())
    units = [key for key, module in modules.items() if wrap_transformer_blocks(module, False, 10**9)]
    assert units == [f'backbone.blocks.{index}' for index in range(depth)]
    assert all(wrap_transformer_blocks(module, True, 10**9) for module in modules.values())


class Unit(nn.Module):
    """Names its inner module as FSDP does."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self._fsdp_wrapped_module = module


def test_layer_decay_of_sharded_blocks(tiny_config):
    """Names of units are understood; weight decay by a parameter's dimensions is not, as all are flattened."""
    model = MODELS.build(tiny_config().model)
    model.backbone.blocks = nn.ModuleList(map(Unit, model.backbone.blocks))
    cfg = dict(constructor='APTLayerDecayOptimWrapperConstructor', optimizer=dict(type='AdamW', lr=1, weight_decay=1),
               paramwise_cfg=dict(num_layers=4, layer_decay_rate=0.5))
    rates = {id(parameter): group['lr'] for group in build_optim_wrapper(model, cfg).optimizer.param_groups
             for parameter in group['params']}
    assert [rates[id(block._fsdp_wrapped_module.norm1.weight)] for block in model.backbone.blocks] == [
        0.0625, 0.125, 0.25, 0.5]
    cfg['paramwise_cfg'].update(flat_decay_mult=0.0)
    with pytest.raises(ValueError, match='flat_decay_mult with FSDP: it flattens all parameters'):
        build_optim_wrapper(model, cfg)


def test_the_flexible_runner_trains_and_resumes(tiny_config, coco_root, tmp_path):
    """The runner that the strategy needs, as tools/train.py sets it up, with another strategy: FSDP wants GPUs."""
    work = tmp_path / 'work'
    for max_iters in (2, 3):
        cfg = point_to(tiny_config(), coco_root, work, max_iters=max_iters)
        cfg.update(runner_type='FlexibleRunner', strategy=dict(type='SingleDeviceStrategy'))
        cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
        cfg.custom_hooks.append(dict(type='BadDataHook'))
        cfg.experiment_name = cfg.visualizer.name = f'flexible_{max_iters}'
        make_fault_tolerant(cfg)
        if max_iters == 3:
            cfg.update(resume=True, load_from=str(work / 'iter_2.pth'))
        runner = RUNNERS.build(cfg)
        runner.train()
        assert type(runner.train_loop).__name__ == 'ResumableIterBasedTrainLoop' and runner.iter == max_iters
    entries = logged(work)
    assert list(entries) == [1, 2, 3] and all(math.isfinite(entry['loss']) for entry in entries.values())
