"""Sharded training as far as a machine without GPUs can tell: the config, the units, a few steps, the runner."""
import copy
import math

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import FUNCTIONS, MODELS, RUNNERS, STRATEGIES, DefaultScope
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

import apt_dense.mm.det
import apt_dense.mm.seg  # noqa: F401
from apt_dense import APTEVA02
from apt_dense.mm.fault_tolerance import make_fault_tolerant
from apt_dense.mm.fault_tolerance.run_comparison import logged
from apt_dense.mm.training.fsdp import wrap_transformer_blocks
from tests.mm import processes
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
    """The runner that the strategy needs, as tools/train.py sets it up, by another strategy: its own wants GPUs."""
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


def outputs_of_two_steps(rank: int, store: str, out: str, options: dict) -> None:
    """In one of two processes: outputs after two steps of AdamW, sharded and by DDP.  Rank 0 merges nothing, 1 all."""
    torch.distributed.init_process_group('gloo', f'file://{store}', rank=rank, world_size=2)
    torch.manual_seed(0)
    model = APTEVA02(img_size=64, pretrain_img_size=64, embed_dims=16, depth=4, num_heads=2, window_size=4,
                     global_block_indexes=(1, 3), num_scales=3, thresholds=(3.0, 3.0), with_cp=options['with_cp'])
    if options['frozen']:
        model.requires_grad_(False)
        for block in model.blocks[2:]:
            block.requires_grad_(True)
    twin, x = copy.deepcopy(model), torch.randn(1, 3, 64, 64) if rank == 0 else torch.zeros(1, 3, 64, 64)
    found = {}
    for name, wrapped in (
            ('sharded', FullyShardedDataParallel(model, auto_wrap_policy=wrap_transformer_blocks, use_orig_params=True,
                                                 device_id=torch.device('cpu'))),
            ('ddp', DistributedDataParallel(twin))):
        optimiser = torch.optim.AdamW([part for part in wrapped.parameters() if part.requires_grad], lr=0.01)
        for _ in range(3):
            optimiser.zero_grad()
            with torch.autocast('cpu', torch.bfloat16, enabled=options['autocast']):
                output = wrapped(x)[-1].float()
            output.square().mean().backward()
            optimiser.step()
            found.setdefault(name, []).append(output.detach())
    found['tokens'] = model.last_layout.num_tokens
    found['units'] = sum(isinstance(block, FullyShardedDataParallel) for block in model.blocks)
    torch.save(found, f'{out}{rank}')
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize('options', [dict(with_cp=False, frozen=False, autocast=False),
                                     dict(with_cp=True, frozen=True, autocast=True)], ids=['plain', 'all'])
def test_sharded_steps_are_those_of_ddp(options, tmp_path):
    ranks = [processes.CONTEXT.Process(target=outputs_of_two_steps, args=(
        rank, str(tmp_path / 'store'), str(tmp_path / 'rank'), options)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    found = [torch.load(tmp_path / f'rank{rank}') for rank in range(2)]
    assert [(each['tokens'], each['units']) for each in found] == [(16, 4), (1, 4)]
    for each in found:
        first, *_, last = each['ddp']
        assert (first - last).abs().max() > 0.1
        for mine, theirs in zip(each['sharded'], each['ddp'], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
