"""Thresholds with which a wanted share of the tokens is kept, of the content of the training images."""
import hashlib
import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

import torch
from cells import Patches

from apt_dense.calibration.thresholds import ScoreMaps, find_thresholds, ratio_family
from apt_dense.core.files import write_atomically
from apt_dense.extras import from_extra
from apt_dense.mm.data.inputs import ConfigInputs

with from_extra('mm'):
    from mmengine.config import Config


def find_cell_thresholds(cfg: Config, patches: Patches, code: str, cache: Path) -> dict[str, Any]:
    """The backbone's settings with which a config has these patches, from the cache if they are there.

    Each training image is scored once, through the test pipeline, as ``calibrate_thresholds.py --split train --pipeline
    test --content --kept KEPT --ratio RATIOS`` does.

    Args:
        cfg: the cell's, with any thresholds.
        code: the hash of the code, which the cache's entries depend on.
        cache: a JSON file, made if it is not there.

    Returns:
        'thresholds', fine to coarse, and 'max_tokens', of an image, or None.

    Raises:
        ValueError: if the share is out of reach: even the smallest threshold merges more.
    """
    inputs = ConfigInputs(cfg, 'train', 'test')
    content = [inputs.settings, patches.ratios, patches.kept, patches.per, code]
    key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
    known = json.loads(cache.read_text()) if cache.is_file() else {}
    if key not in known:
        known[key] = _search(score_all(inputs), patches)
        write_atomically(cache, json.dumps(known, indent=1) + '\n')
    return {**known[key], 'thresholds': tuple(known[key]['thresholds'])}


def score_all(inputs: ConfigInputs) -> ScoreMaps:
    """The score maps of all images."""
    maps = ScoreMaps(inputs.chooser.num_scales)
    for index in range(len(inputs)):
        for scores, content_cells in inputs.score(index):
            maps.add(scores, content_cells)
    return maps


def _search(maps: ScoreMaps, patches: Patches) -> dict[str, Any]:
    cells = maps.num_content_cells.sum().item()
    nothing = (0.0,) * (maps.num_scales - 1)  # merged: no score is below

    def kept(thresholds: tuple[float, ...]) -> float:
        return maps.count_tokens(thresholds, content_only=True).sum().item() / cells

    def kept_of_budget(max_tokens: int) -> float:
        maps.max_tokens = max_tokens
        return kept(nothing)

    with torch.no_grad():
        if patches.per == 'dataset':
            family = ratio_family(maps, patches.ratios)
            return dict(thresholds=find_thresholds(family, kept, patches.kept), max_tokens=None)
        budgets = range(int(maps.num_cells.max()) // 4**(maps.num_scales - 1), int(maps.num_cells.max()) + 1)
        fitting = bisect_right(budgets, patches.kept, key=kept_of_budget)
        if not fitting:
            raise ValueError(f'no number of tokens for each image keeps {patches.kept:g} of the content')
        return dict(thresholds=nothing, max_tokens=budgets[fitting - 1])
