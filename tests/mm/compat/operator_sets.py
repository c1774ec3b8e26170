"""mmcv's compiled operators and the plain ones, in one process; cases for both."""
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from apt_dense.mm.compat.operator_set import NAME, PlainOperators, plain_operators

NMS_THRESHOLD, SOFT_THRESHOLD, SIGMA, MIN_SCORE = 0.5, 0.4, 0.5, 0.05


def compiled_operators() -> ModuleType | None:
    """mmcv's own; None where it has none."""
    module = plain_operators().compiled if plain_operators() is not None else sys.modules[NAME]
    return module if isinstance(module, ModuleType) else None


def use_operators(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let mmcv use 'plain' or 'compiled' ones until the test ends; skip it where there are none."""
    compiled = compiled_operators()
    if kind == 'compiled' and compiled is None:
        pytest.skip("mmcv has no compiled operators: 'MMCV=compiled make setup' compiles them")
    chosen = compiled if kind == 'compiled' else PlainOperators(compiled or 'mmcv has none')
    monkeypatch.setitem(sys.modules, NAME, chosen)
    for name in ('nms', 'roi_align'):
        monkeypatch.setattr(importlib.import_module(f'mmcv.ops.{name}'), 'ext_module', chosen, raising=False)


def roi_align_cases() -> Iterator[tuple[str, Tensor, Tensor, dict, Tensor]]:
    """(name, maps, rois, settings of RoIAlign, gradient of what comes out)."""
    random = np.random.RandomState(0)
    for height, width in ((7, 10), (1, 6), (1, 1)):
        maps = torch.from_numpy(random.randn(2, 3, height, width).astype(np.float32))
        side_x, side_y = width * 4.0, height * 4.0
        rois = torch.tensor([
            [0, 0.3 * side_x, 0.2 * side_y, 0.6 * side_x, 0.7 * side_y], [1, 0, 0, side_x, side_y],  # inside; all
            [1, 5, 5, 5, 5], [0, 2, 3, 2, 9], [0, 3, 3, 3.01, 3.02],  # a point, a line, nearly a point
            [0, -40, -30, -20, -10], [1, side_x + 9, 0, side_x + 30, 8],  # outside on two sides
            [0, -9, -7, 6, 5], [1, 0.5 * side_x, 0.5 * side_y, side_x + 13, side_y + 11],  # half outside
            [0, -300, -200, 400, 350], [1, side_x - 2, side_y - 2, side_x, side_y]])  # far over the edges; a corner
        for bins in ((3, 2), (1, 5)):
            gradient = torch.from_numpy(random.randn(len(rois), 3, *bins).astype(np.float32))
            for aligned in (True, False):
                for ratio in (0, 2):
                    settings = dict(output_size=bins, spatial_scale=0.25, sampling_ratio=ratio, aligned=aligned)
                    yield f'{height}x{width}_{bins[0]}x{bins[1]}_{aligned}_{ratio}', maps, rois, settings, gradient
    yield 'empty', maps, rois[:0], settings, gradient[:0]


def box_cases() -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, boxes, scores): none, one, few, and more than a block of the plain NMS; with ties, alike boxes, groups."""
    random = np.random.RandomState(1)
    for number in (0, 1, 2, 30, 150, 400):
        for clusters in (3, 40):
            centres = (random.rand(clusters, 2) * 300)[random.randint(clusters, size=number)]
            centres += random.randn(number, 2) * 4
            sides = random.rand(number, 2) * 60
            boxes = np.concatenate([centres - sides / 2, centres + sides / 2], 1).astype(np.float32)
            scores = random.rand(number).astype(np.float32)
            if number > 10:
                boxes[1::9] = boxes[::9][:len(boxes[1::9])]  # alike
                boxes[5, 2:], boxes[7, 2:] = boxes[5, :2], boxes[7, :2] - 3  # without area; inside out
            if clusters == 3:
                scores = (scores * 12).round() / 12
            if number > 100 and clusters == 40:  # as batched_nms shifts classes
                boxes += random.randint(6, size=(number, 1)).astype(np.float32) * 400
            yield f'{number}_{clusters}', torch.from_numpy(boxes), torch.from_numpy(scores)
