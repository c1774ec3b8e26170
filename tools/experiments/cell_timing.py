"""Seconds of a cell's model and of its dense twin, in turns, in one process."""
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from cell_config import dense_twin

from apt_dense.benchmark.measure import Marks, interleave, keep_freed_memory
from apt_dense.extras import from_extra

with from_extra('mm'):
    from mmengine.config import Config, ConfigDict
    from mmengine.device import get_device
    from mmengine.model import revert_sync_batchnorm
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS
    from mmengine.runner import Runner
    from torch import nn


def time_against_dense(cfg: Config, model: nn.Module, num_images: int, num_steps: int) -> dict[str, dict[str, float]]:
    """Time testing, image by image, and training steps of a cell's model and of the dense model with the same weights.

    The dense twin trains entirely, also where the cell trains the added parameters alone.  Processor time of this
    process on a CPU, the stream's time on a GPU; data are loaded beforehand.  Training changes both models.

    Args:
        cfg: the cell's.
        model: the cell's, trained, on the device.
        num_images: of the validation images, from the first on.
        num_steps: training steps; of each kind one more comes before them and does not count.

    Returns:
        For 'test' and 'train': 'cell' and 'dense', median seconds of an image or a step, 'speedup', the median of the
        rounds' ratios (dense over cell), and 'rounds'.
    """
    keep_freed_memory()
    twin_cfg = dense_twin(cfg)
    twin = revert_sync_batchnorm(MODELS.build(twin_cfg.model)).to(get_device())
    own = model.state_dict()
    twin.load_state_dict({name: own[name] for name in twin.state_dict()})
    pair = {'cell': (model, cfg), 'dense': (twin, twin_cfg)}
    return {'test': _compare({name: _test_step(one) for name, (one, _) in pair.items()},
                             _batches(cfg, 'test', num_images + 1)),
            'train': _compare({name: _train_step(*one) for name, one in pair.items()},
                              _batches(cfg, 'train', num_steps + 1))}


def _test_step(model: nn.Module) -> Callable[[dict[str, Any]], Any]:
    return torch.no_grad()(model.eval().test_step)


def _train_step(model: nn.Module, cfg: Config) -> Callable[[dict[str, Any]], Any]:
    optim_wrapper = build_optim_wrapper(model.train(), cfg.optim_wrapper)
    return lambda batch: model.train_step(batch, optim_wrapper)


def _batches(cfg: Config, split: str, number: int) -> list[dict[str, Any]]:
    """The first batches of a split's data, in memory."""
    loader = Runner.build_dataloader(ConfigDict(cfg[f'{split}_dataloader']), seed=0)
    return list(itertools.islice(itertools.cycle(loader), number))


def _compare(steps: dict[str, Callable[[dict[str, Any]], Any]], batches: list[dict[str, Any]]) -> dict[str, float]:
    """Both take the same batch in each round; the first round does not count."""
    turns = {name: iter(batches) for name in steps}

    def run(name: str) -> float:
        batch, marks = next(turns[name]), Marks(get_device(), 'process')
        marks.mark()
        steps[name](batch)
        marks.mark()
        return sum(marks.seconds().values())

    times = interleave({name: lambda name=name: run(name) for name in steps}, len(batches) - 1, warmup=1)
    ratios = [dense / cell for cell, dense in zip(times['cell'], times['dense'], strict=True)]
    return dict(**{name: statistics.median(values) for name, values in times.items()},
                speedup=statistics.median(ratios), rounds=len(ratios))
