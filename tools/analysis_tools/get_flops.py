#!/usr/bin/env python
"""Count what APT really computes, image by image, over the test images of a config or a folder of images.

    python tools/analysis_tools/get_flops.py configs/apt_eva02_l_coco.py --num-images 500
    python tools/analysis_tools/get_flops.py configs/apt_eva02_l_coco.py --images photos --head-images 0
    python tools/analysis_tools/get_flops.py configs/apt_eva02_l_coco.py \\
        --cfg-options "model.backbone.thresholds=[1,1,0.2]"

The backbone's multiply-adds follow from each image's layout, exactly and without running its blocks.  Neck and heads
are counted by torch's FlopCounterMode in a whole prediction, for a few images only, because that takes its time and
hardly depends on the image; RoIAlign and NMS are no matrix products and are not counted.  mmengine calls a multiply-add
a FLOP.
"""
import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from apt_dense.benchmark.run import environment
from apt_dense.calibration.whole_images import find_whole_images
from apt_dense.command_line import at_least
from apt_dense.core.files import check_target, write_atomically
from apt_dense.core.flops import dense_layout, multiply_adds
from apt_dense.core.vit import PackedViT
from apt_dense.extras import from_extra
from apt_dense.mm import compat
from apt_dense.mm.cli import launch, loading, start
from apt_dense.mm.cli.dataset_files import check_dataset_files
from apt_dense.mm.data.inputs import BackboneInput, ConfigInputs
from apt_dense.mm.preflight.options import OptionsAction

with from_extra('mm'):
    import numpy as np
    from mmengine.config import Config
    from mmengine.device import get_device
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, DefaultScope

PERCENTILES = (5, 50, 95)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', nargs='?', help='weights: they decide how many detections the mask head sees')
    parser.add_argument('--images', type=Path, help="a folder of images instead of the config's test dataset")
    parser.add_argument('--num-images', type=at_least(1), default=100, help='the first so many images (100)')
    parser.add_argument('--head-images', type=at_least(1), default=1,
                        help='count neck and heads on so many of them (1)')
    parser.add_argument('--json', type=Path, help='write the numbers of every image here')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE', help='change settings')
    args = parser.parse_args(arguments)
    args.launcher, args.work_dir, args.local_rank = 'none', None, 0
    return args


def open_inputs(cfg: Config, folder: Path | None) -> ConfigInputs:
    """The images of the test dataset, or of the folder, through the config's test pipeline.

    Raises:
        LaunchError: if the folder is not there, has no image or a damaged one, or the config's backbone is no
            PackedViT.
    """
    try:
        return ConfigInputs(cfg, images=None if folder is None else find_whole_images([folder]))
    except ValueError as error:
        raise launch.LaunchError(str(error)) from error


def count_backbone(backbone: PackedViT, inputs: Sequence[BackboneInput]) -> dict[str, float]:
    """An image's inputs -> the backbone's multiply-adds, those of the dense twin, and the kept-token fractions."""
    layouts = [backbone.chooser.layout(one.x) for one in inputs]
    content = [one.content_cells(backbone.patch_size) for one in inputs]
    tokens = sum(sum(layout.scale_counts) for layout in layouts)
    content_tokens = sum(int(layout.covers_content([cells]).sum())
                         for layout, cells in zip(layouts, content, strict=True))
    return dict(backbone=sum(multiply_adds(backbone, layout).total for layout in layouts),
                dense_backbone=sum(multiply_adds(backbone, dense_layout(layout)).total for layout in layouts),
                kept=tokens / sum(layout.num_cells for layout in layouts),
                kept_content=content_tokens / sum(rows * cols for rows, cols in content))


def count_rest(model: nn.Module, data: dict[str, Any]) -> int:
    """Multiply-adds of everything but the backbone in one prediction."""
    with FlopCounterMode(display=False) as counter:
        model.test_step(data)
    name = type(model).__name__
    counts = counter.get_flop_counts()
    return (sum(counts['Global'].values()) - sum(counts[f'{name}.backbone'].values())) // 2


def build_model(cfg: Config, checkpoint: str | None) -> nn.Module:
    """The config's model in eval mode."""
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval().requires_grad_(False).to(get_device())
    if checkpoint:
        start.check_checkpoint(checkpoint, 'the second argument')
        loading.load_weights(model, checkpoint)
    return model


def summarise(counts: list[dict[str, float]], rest: list[int], num_parameters: int) -> str:
    """Mean and percentiles over the images, in lines."""
    columns = ['mean', *(f'{percentile}th percentile' for percentile in PERCENTILES)]
    lines = [f'{"":34}' + ''.join(f'{column:>18}' for column in columns)]

    def add(label: str, values: list[float], unit: float) -> None:
        statistics = [np.mean(values), *np.percentile(values, PERCENTILES)]
        lines.append(f'{label:34}' + ''.join(f'{value / unit:18.3f}' for value in statistics))

    apt, dense = ([count[name] for count in counts] for name in ('backbone', 'dense_backbone'))
    add('kept-token fraction', [count['kept'] for count in counts], 1)
    add('kept-token fraction, no padding', [count['kept_content'] for count in counts], 1)
    add('backbone, G multiply-adds', apt, 1e9)
    add('backbone of the dense twin, G', dense, 1e9)
    add('dense / APT, backbone', [a / b for a, b in zip(dense, apt, strict=True)], 1)
    if rest:
        mean = float(np.mean(rest))
        add('neck and heads, G', rest, 1e9)
        add('whole model, G', [count + mean for count in apt], 1e9)
        add('dense / APT, whole model', [(a + mean) / (b + mean) for a, b in zip(dense, apt, strict=True)], 1)
    return '\n'.join([f'{len(counts)} images, {num_parameters / 1e6:.1f} M parameters', *lines])


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    compat.filter_library_warnings()
    if args.json:
        check_target(args.json, '--json')
    cfg = launch.load_config(args)
    if args.images is None:
        check_dataset_files(cfg, 'test')
    with DefaultScope.overwrite_default_scope(launch.scope_of(cfg)):
        inputs = open_inputs(cfg, args.images)
        model = build_model(cfg, args.checkpoint)
        counts, rest = [], []
        for index in range(min(args.num_images, len(inputs))):
            counts.append(count_backbone(model.backbone, inputs.inputs(index)))
            if index < args.head_images:
                rest.append(count_rest(model, inputs.sample(index)))
    print(f'{cfg.filename}, thresholds {model.backbone.thresholds}, batch 1')
    print(summarise(counts, rest, sum(parameter.numel() for parameter in model.parameters())))
    if args.json:
        words = ['python tools/analysis_tools/get_flops.py', *(arguments or sys.argv[1:])]
        content = dict(environment=environment(words), thresholds=model.backbone.thresholds, images=counts,
                       neck_and_heads=rest)
        write_atomically(args.json, json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
