"""Ways to have fewer tokens, as options of a config with APT: what compare_methods.py compares."""
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from apt_dense.calibration.shares import thresholds_for
from apt_dense.calibration.thresholds import ScoreMaps
from apt_dense.core.vit import PackedViT

BACKBONE = 'model.backbone'


class Setting(NamedTuple):
    """One method at one budget.

    Attributes:
        method: a key of ``METHODS``, or 'dense'.
        budget: wanted share of the tokens, mean over the layers.
        options: of the config.
    """
    method: str
    budget: float
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Short and a file's name too."""
        return self.method if self.method == 'dense' else f'{self.method}_{self.budget:g}'


def dense_options(**reduction: Any) -> dict[str, Any]:
    """Of the dense model, with a reduction or without."""
    options = {f'{BACKBONE}.num_scales': 1, f'{BACKBONE}.thresholds': ()}
    return options | ({f'{BACKBONE}.reduction': reduction} if reduction else {})


class Maker:
    """Makes the options of a method at a budget.

    Args:
        own: the config's thresholds, fine to coarse, whose proportions are kept.
        maps: scores of the pictures that the thresholds are found on.
    """

    def __init__(self, own: tuple[float, ...], maps: ScoreMaps):
        self.own, self.maps = own, maps

    def _patches(self, kept: float, **others: Any) -> dict[str, Any]:
        thresholds = tuple(float(f'{value:.4g}') for value in thresholds_for(self.maps, kept, self.own))
        return {f'{BACKBONE}.thresholds': thresholds} | {f'{BACKBONE}.{name}': value for name, value in others.items()}

    def apt(self, budget: float) -> dict[str, Any]:
        """APT."""
        return self._patches(budget)

    def resizing(self, budget: float) -> dict[str, Any]:
        """APT's patches without the detail branch, and merged patches that count once."""
        return self._patches(budget, detail_branch='none', proportional_attention=False)

    def random(self, budget: float) -> dict[str, Any]:
        """Base patches drawn at random."""
        return dense_options(type='Random', kept=budget)

    def tome(self, budget: float) -> dict[str, Any]:
        """ToMe with proportional attention."""
        return dense_options(type='ToMe', kept=budget)

    def tome_advanced(self, budget: float) -> dict[str, Any]:
        """ToMe without: the paper's "advanced" variant."""
        return dense_options(type='ToMe', kept=budget, proportional=False)

    def evit(self, budget: float) -> dict[str, Any]:
        """EViT; needs a class token that attends to the whole image."""
        return dense_options(type='EViT', kept=budget)

    def dtem(self, budget: float) -> dict[str, Any]:
        """DTEM; its metric is learnt."""
        return dense_options(type='DTEM', kept=budget)

    def dtem_advanced(self, budget: float) -> dict[str, Any]:
        """DTEM without proportional attention."""
        return dense_options(type='DTEM', kept=budget, proportional=False)

    def apt_tome(self, budget: float) -> dict[str, Any]:
        """Both, each at the square root of the budget."""
        return self._patches(budget**0.5, reduction=dict(type='ToMe', kept=budget**0.5))


METHODS: dict[str, tuple[str, Callable]] = {
    'apt': ('APT', Maker.apt), 'resizing': ('Resizing', Maker.resizing), 'random': ('Random', Maker.random),
    'tome': ('ToMe', Maker.tome), 'tome_advanced': ('ToMe, advanced', Maker.tome_advanced),
    'evit': ('EViT', Maker.evit), 'dtem': ('DTEM', Maker.dtem), 'apt_tome': ('APT + ToMe', Maker.apt_tome),
    'dtem_advanced': ('DTEM, advanced', Maker.dtem_advanced)}
LEARNT = ('dtem', 'dtem_advanced')  # without training they are nothing


class RowCounter:
    """Counts rows in the blocks of a backbone while it runs: the mean, over attention and MLP layers, of kept tokens.

    Prefix rows are left out.  Padding counts as all else, in the rows and in what they are compared with.
    """

    def __init__(self, backbone: PackedViT):
        self.backbone, self.rows, self.cells = backbone, 0, 0
        for block in backbone.blocks:
            block.register_forward_hook(self._count)

    def _count(self, block: nn.Module, inputs: tuple, output: Any) -> None:
        layout = self.backbone.last_layout
        left = output[0] if isinstance(output, tuple) else output
        self.rows += len(inputs[0]) + len(left) - 2 * layout.num_prefix * layout.batch_size
        self.cells += 2 * layout.num_cells

    @property
    def kept(self) -> float:
        """Rows over cells."""
        return self.rows / self.cells


def check_learnt(state: dict[str, torch.Tensor], options: dict[str, Any]) -> str | None:
    """Why a method can't be tested with these weights; None if it can."""
    reduction = options.get(f'{BACKBONE}.reduction') or {}
    if reduction.get('type') == 'DTEM' and not any('.reduction.metrics.' in name for name in state):
        return 'its metric is learnt, and the checkpoint has none: use --train'
    return None
