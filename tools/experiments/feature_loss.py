#!/usr/bin/env python
"""How well the scores of patches tell what a dense model's features lose when the patches are merged.

    python tools/experiments/feature_loss.py

A merged patch has one feature vector for all of its cells.  What that loses, at the least, is the variance of the dense
model's features inside the patch: the *loss* here, over the variance in the image.  For each scorer the rank
correlation (Spearman) of its score and the loss is computed over all patches of the validation images that lie in the
content, for each size and for all sizes together, as one threshold takes them.  Beside the scorers stands a linear
function of the logarithms of seven statistics of the pixels, fitted to the losses of other images: what a scorer that
was trained on the model itself would know.

It reads the dense models that ``run.py dense`` has trained, and writes docs/results/feature_loss.json, of which
report.py makes a table.  About two minutes a model.
"""
import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from cell_config import build_config
from cell_identity import ROOT
from cell_queue import Places, make_dataset
from cell_results import Results
from cells import SCRATCH, TASKS, Cell
from grids import DATASETS, NUM_SCALES
from run_cell import SCOPES, WEIGHTS
from torch import Tensor

from apt_dense.core.files import write_atomically
from apt_dense.core.importance import luma, upsampling_error
from apt_dense.core.scorers import SCORERS
from apt_dense.extras import from_extra
from apt_dense.mm.data.inputs import ConfigInputs

with from_extra('mm'):
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

FITTED = 'fitted'
NUM_FITTED, NUM_TESTED = 60, 60  # images
FLOOR = 1e-6  # of what a logarithm is taken of
RIDGE = 1e-3
FIRST_PX = 32  # side of the smallest merged patch


def feature_losses(maps: Sequence[Tensor], num_scales: int) -> list[Tensor]:
    """(1, C, H, W) feature maps -> for each merged size (H / 2**s, W / 2**s): mean over the maps of the squared
    distance of a patch's cells from their mean, over the variance in the image."""
    height, width = maps[0].shape[-2:]
    losses = [torch.zeros(height >> scale, width >> scale, dtype=torch.float64) for scale in range(1, num_scales)]
    for features in maps:
        features = features.double()
        variance = features.flatten(2).var(2, unbiased=False).sum()
        for scale, loss in enumerate(losses, start=1):
            mean = F.avg_pool2d(features, 1 << scale)
            inside = F.avg_pool2d(features.square(), 1 << scale) - mean.square()
            loss += inside[0].sum(0).clamp(min=0) / variance / len(maps)
    return losses


def statistics(image: Tensor, num_merged: int) -> list[Tensor]:
    """(1, 3, H, W), RGB in 0..255 -> for each merged size (H', W', 7): logarithms of error and largest error of
    resizing and of halving, and of the variances of grey, red - green and blue - green."""
    image = image / 255
    grey, (red, green, blue) = luma(image)[:, None], image.split(1, 1)
    result = []
    for scale in range(num_merged):
        side_px, values = FIRST_PX << scale, []
        for factor in (0.5**(scale + 1), 0.5):
            error = F.avg_pool2d(upsampling_error(grey, factor), 8)
            values += [pool(error, side_px // 8) for pool in (F.avg_pool2d, F.max_pool2d)]
        for plane in (grey, red - green, blue - green):
            values.append(F.avg_pool2d(plane.square(), side_px) - F.avg_pool2d(plane, side_px).square())
        result.append((torch.cat(values)[:, 0].permute(1, 2, 0).double().clamp(min=0) + FLOOR).log())
    return result


def fit(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression of (N,) on (N, F), with a constant: weights and constant."""
    mean, std = x.mean(0), x.std(0).clamp(min=1e-9)
    scaled = (x - mean) / std
    gram = scaled.T @ scaled / len(y) + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, scaled.T @ (y - y.mean()) / len(y)) / std
    return weights, y.mean() - weights @ mean


def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation of two (N,); equal values share their mean rank."""
    ranks = [_ranks(values) for values in (first, second)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[inverse]


@torch.no_grad()
def patches_of(cfg: Config, model: torch.nn.Module, split: str, count: int, num_scales: int) -> Iterator[tuple]:
    """Of each of ``count`` images, evenly picked: losses, statistics and scores by scorer, each a list of (N, ...) by
    size, of the patches in the content."""
    inputs = ConfigInputs(cfg, split, 'test')
    for index in torch.linspace(0, len(inputs) - 1, min(count, len(inputs))).long().tolist():
        for one in inputs.inputs(index):
            maps, image = model.backbone(one.x), inputs.chooser.restore(one.x)
            rows, cols = one.content_cells(inputs.chooser.patch_size)

            def inside(values: list[Tensor], rows: int = rows, cols: int = cols) -> list[Tensor]:
                return [value[:rows >> scale, :cols >> scale].flatten(0, 1)
                        for scale, value in enumerate(values, start=1)]

            scores = {name: inside([scores[0].double() for scores in scorer(image, FIRST_PX, num_scales - 1)])
                      for name, scorer in SCORERS.items()}
            yield inside(feature_losses(maps, num_scales)), inside(statistics(image, num_scales - 1)), scores


def correlations(cfg: Config, model: torch.nn.Module, num_scales: int) -> dict[str, list[float]]:
    """For each scorer, and what was fitted: the rank correlation for each merged size, fine to coarse, and for all."""
    def joined(parts: Sequence[list[Tensor]]) -> list[Tensor]:
        return [torch.cat(size) for size in zip(*parts, strict=True)]

    losses, known, _ = zip(*patches_of(cfg, model, 'train', NUM_FITTED, num_scales), strict=True)
    fitted = [fit(x, (y + FLOOR).log()) for x, y in zip(joined(known), joined(losses), strict=True)]
    losses, known, scores = zip(*patches_of(cfg, model, 'test', NUM_TESTED, num_scales), strict=True)
    losses = joined(losses)
    found = {name: joined([image[name] for image in scores]) for name in SCORERS}
    found[FITTED] = [x @ weights + constant for x, (weights, constant) in zip(joined(known), fitted, strict=True)]
    return {name: [*map(spearman, values, losses), spearman(torch.cat(values), torch.cat(losses))]
            for name, values in found.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--results', type=Path, default=ROOT / 'docs/results/cells.jsonl')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/experiments')
    parser.add_argument('--data', type=Path, default=ROOT / 'data/experiments')
    parser.add_argument('--configs', type=Path, default=ROOT / 'tools/experiments/configs')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/results/feature_loss.json')
    args = parser.parse_args(arguments)
    places = Places(args.work_dir.resolve(), args.data.resolve(), args.configs.resolve())
    results = Results(args.results)
    table = json.loads(args.out.read_text()) if args.out.is_file() else {}
    torch.set_num_threads(1)
    for task in TASKS:
        for name, dataset in DATASETS.items():
            cell = Cell(task, name, None, SCRATCH)
            result = results.get(cell)
            weights = result and result['status'] == 'done' and places.work_dir(cell, result['hash']) / WEIGHTS
            if not weights or not weights.is_file():
                print(f'{cell.name}: no weights in {args.work_dir}, left out')
                continue
            cfg = build_config(cell, dataset, places.configs, make_dataset(name, places.data))
            with DefaultScope.overwrite_default_scope(SCOPES[task]):
                model = MODELS.build(cfg.model).eval()
                model.load_state_dict(torch.load(weights, weights_only=True)['state_dict'])
                table[f'{task}_{name}'] = correlations(cfg, model, NUM_SCALES[task])
            write_atomically(args.out, json.dumps(table, indent=1, sort_keys=True) + '\n')
            print(f'{cell.name}: done')
    return 0


if __name__ == '__main__':
    sys.exit(main())
