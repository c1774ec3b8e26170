"""Thresholds that change from one iteration to the next, so that one model serves every budget of tokens."""
import math
from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from apt_dense.core.quadtree import check_thresholds
from apt_dense.mm.errors import LaunchError
from apt_dense.mm.training.hooks import backbone_of


@HOOKS.register_module()
class WarmThresholdsHook(Hook):
    """Train with thresholds that are drawn for each iteration; test with those of the config.

    They lie between two ends: ``low ** (1 - u) * high ** u`` for each scale, with one u in [0, 1) for all.  It follows
    from the run's seed and the iteration alone: every process draws the same, and so does a run that is resumed.

    Args:
        low, high: S - 1 positive thresholds each, fine to coarse, at which the fewest and the most patches are merged:
            those that ``calibrate_thresholds.py`` finds for a kept share of 0.9 and of 0.35, say.

    Raises:
        LaunchError: if they are not S - 1 positive numbers, or ``low`` is above ``high``.
    """

    def __init__(self, low: Sequence[float], high: Sequence[float]):
        self.low, self.high = tuple(low), tuple(high)
        if not all(0 < a <= b < math.inf for a, b in zip(self.low, self.high, strict=False)):
            raise LaunchError(f'WarmThresholdsHook: low={self.low} and high={self.high} must be positive numbers, low '
                              'not above high')
        self._of_config: tuple[float, ...] | None = None

    def before_train(self, runner: Runner) -> None:
        backbone = backbone_of(runner.model, type(self).__name__)
        for name, values in (('low', self.low), ('high', self.high)):
            try:
                check_thresholds(values, backbone.num_scales)
            except ValueError as error:
                raise LaunchError(f'WarmThresholdsHook: {name}: {error}') from error
        self._of_config = backbone.thresholds

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        backbone_of(runner.model).thresholds = self.thresholds(runner.seed, runner.iter)

    def thresholds(self, seed: int, iteration: int) -> tuple[float, ...]:
        """Those of an iteration."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + iteration)
        share = torch.rand((), generator=generator, dtype=torch.float64).item()
        return tuple(low**(1 - share) * high**share for low, high in zip(self.low, self.high, strict=True))

    def before_val(self, runner: Runner) -> None:
        if self._of_config is not None:
            backbone_of(runner.model).thresholds = self._of_config

    def after_train(self, runner: Runner) -> None:
        backbone_of(runner.model).thresholds = self._of_config
