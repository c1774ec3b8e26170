"""Thresholds with which a wanted share of the tokens is kept, of the content of the training images."""
import hashlib
import json
from pathlib import Path

import torch
from cells import Patches

from apt_dense.calibration.thresholds import ScoreMaps, find_thresholds, ratio_family
from apt_dense.core.files import write_atomically
from apt_dense.extras import from_extra
from apt_dense.mm.data.inputs import ConfigInputs

with from_extra('mm'):
    from mmengine.config import Config


def find_cell_thresholds(cfg: Config, patches: Patches, code: str, cache: Path) -> tuple[float, ...]:
    """The thresholds of a config with these patches, fine to coarse, from the cache if they are there.

    Each training image is scored once, through the test pipeline, as ``calibrate_thresholds.py --split train --pipeline
    test --content --kept KEPT --ratio RATIOS`` does.

    Args:
        cfg: the cell's, with any thresholds.
        code: the hash of the code, which the cache's entries depend on.
        cache: a JSON file, made if it is not there.

    Raises:
        ValueError: if the share is out of reach: even the smallest threshold merges more.
    """
    inputs = ConfigInputs(cfg, 'train', 'test')
    content = [inputs.settings, patches.ratios, patches.kept, code]
    key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
    known = json.loads(cache.read_text()) if cache.is_file() else {}
    if key not in known:
        known[key] = list(_search(score_all(inputs), patches))
        write_atomically(cache, json.dumps(known, indent=1) + '\n')
    return tuple(known[key])


def score_all(inputs: ConfigInputs) -> ScoreMaps:
    """The score maps of all images."""
    maps = ScoreMaps(inputs.chooser.num_scales)
    for index in range(len(inputs)):
        for scores, content_cells in inputs.score(index):
            maps.add(scores, content_cells)
    return maps


def _search(maps: ScoreMaps, patches: Patches) -> tuple[float, ...]:
    cells = maps.num_content_cells.sum().item()

    def kept(thresholds: tuple[float, ...]) -> float:
        return maps.count_tokens(thresholds, content_only=True).sum().item() / cells

    with torch.no_grad():
        return find_thresholds(ratio_family(maps, patches.ratios), kept, patches.kept)
