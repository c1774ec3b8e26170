#!/usr/bin/env python
"""Speed of a whole detector or segmentor: preprocessing, backbone, heads, post-processing; loading images is left out.

    python tools/benchmark/benchmark_model.py configs/apt_eva02_l_coco.py CHECKPOINT
    python tools/benchmark/benchmark_model.py configs/apt_eva02_l_coco.py CHECKPOINT \\
        --against configs/eva02_l_coco.py --against-checkpoint DENSE_CHECKPOINT
    python tools/benchmark/benchmark_model.py configs/apt_eva02_ti_demo_det.py --task train --amp --batch-size 2

With --against the two models take the same images in turns, and the ratio of their times is the speed-up.  Weights
matter: a detector without a checkpoint finds other numbers of objects than a trained one.  --task train is a forward
and a backward pass and the optimiser's step on training images.
"""
import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apt_dense.benchmark.measure import Marks, interleave, keep_freed_memory, summary
from apt_dense.benchmark.report import format_seconds
from apt_dense.benchmark.run import device_name, environment
from apt_dense.command_line import at_least
from apt_dense.core.files import check_target, write_atomically
from apt_dense.extras import from_extra
from apt_dense.mm import compat
from apt_dense.mm.cli import launch, loading, precision, start
from apt_dense.mm.cli.dataset_files import check_dataset_files
from apt_dense.mm.preflight.options import OptionsAction

with from_extra('mm'):
    from mmengine.config import Config, ConfigDict
    from mmengine.device import get_device
    from mmengine.model import revert_sync_batchnorm
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS, DefaultScope
    from mmengine.runner import Runner


@dataclass
class Contestant:
    """A config's model with what it takes to run it.

    Attributes:
        cfg: the config.
        model: on the device, in train or eval mode.
        step: a batch of the data loader -> nothing; one prediction, or one training step.
        tokens, cells: summed over the backbone's forward passes; 0 where it is no APTEVA02.
    """
    cfg: Config
    model: nn.Module
    step: Callable[[dict[str, Any]], None]
    tokens: int = 0
    cells: int = 0

    def count_tokens(self, backbone: nn.Module, *_: object) -> None:
        """A forward hook of the backbone."""
        layout = getattr(backbone, 'last_layout', None)
        if layout is not None:
            self.tokens += sum(layout.scale_counts)
            self.cells += layout.num_cells


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', nargs='?', help='its weights; random without')
    parser.add_argument('--task', choices=['inference', 'train'], default='inference')
    parser.add_argument('--against', metavar='CONFIG',
                        help='another config, such as the dense twin, on the same images')
    parser.add_argument('--against-checkpoint', metavar='CHECKPOINT', help='its weights')
    parser.add_argument('--batch-size', type=at_least(1), help='images of a batch (1 for inference, else that of the '
                        'config); mmsegmentation tests images of one size only')
    parser.add_argument('--num-batches', type=at_least(1), default=10, help='different batches, loaded beforehand (10)')
    parser.add_argument('--max-iter', type=at_least(1), default=50, help='batches that count (50)')
    parser.add_argument('--num-warmup', type=at_least(0), default=5, help='batches before them (5)')
    parser.add_argument('--amp', action='store_true', help='mixed precision, in inference for the backbone '
                        'alone; bfloat16, float16 on a GPU before Ampere')
    parser.add_argument('--clock', choices=['wall', 'process'], default='wall',
                        help='CPU only; process: processor time of this process')
    parser.add_argument('--threads', type=at_least(1), help='of a CPU')
    parser.add_argument('--json', type=Path, help='write the figures here')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE',
                        help='change settings of both configs')
    args = parser.parse_args(arguments)
    args.launcher, args.work_dir, args.local_rank = 'none', None, 0
    if args.against_checkpoint and not args.against:
        parser.error('--against-checkpoint without --against')
    return args


def load_batches(cfg: Config, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Batches of the test or training data, in memory.

    Raises:
        LaunchError: if dataset files are missing, or the config has no training data.
    """
    split = 'train' if args.task == 'train' else 'test'
    if split == 'train':
        launch.check_trainable(cfg)
    check_dataset_files(cfg, split)
    settings = ConfigDict(cfg[f'{split}_dataloader'], num_workers=0, persistent_workers=False)
    if args.batch_size or split == 'test':
        settings.batch_size = args.batch_size or 1
    batches = []
    for batch in Runner.build_dataloader(settings, seed=0):
        batches.append(batch)
        if len(batches) == args.num_batches:
            break
    return batches


def build(cfg: Config, checkpoint: str | None, args: argparse.Namespace) -> Contestant:
    """The config's model and its step.

    Raises:
        LaunchError: for a checkpoint that is missing or official, or a config that cannot train.
    """
    train = args.task == 'train'
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    if get_device() == 'cpu' or not torch.distributed.is_initialized():
        model = revert_sync_batchnorm(model)
    if checkpoint:
        start.check_checkpoint(checkpoint, 'CHECKPOINT')
        loading.load_weights(model, checkpoint)
    model.to(get_device()).train(train)
    contestant = Contestant(cfg, model, lambda data: None)
    if hasattr(model, 'backbone'):
        model.backbone.register_forward_hook(contestant.count_tokens)
    contestant.step = _train_step(cfg, model, args.amp) if train else _inference_step(model, args.amp)
    return contestant


def _train_step(cfg: Config, model: nn.Module, amp: bool) -> Callable[[dict[str, Any]], None]:
    launch.check_trainable(cfg)
    precision.set_amp(cfg, amp)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    return lambda data: model.train_step(data, optim_wrapper)


def _inference_step(model: nn.Module, amp: bool) -> Callable[[dict[str, Any]], None]:
    """Mixed precision is for the backbone alone: mmdetection pastes masks at wrong sizes in half precision."""
    if amp:
        device, whole = get_device(), model.backbone.forward

        def forward(x: Tensor) -> tuple[Tensor, ...]:
            with torch.autocast(device, precision.half_dtype()):
                outputs = whole(x)
            return tuple(output.float() for output in outputs)
        model.backbone.forward = forward

    def step(data: dict[str, Any]) -> None:
        with torch.no_grad():
            model.test_step(data)
    return step


def compare(contestants: dict[str, Contestant], batches: list[dict[str, Any]], max_iter: int, num_warmup: int,
            clock: str) -> dict[str, dict[str, Any]]:
    """Run the models in turns over the batches.

    Returns:
        For each name its 'seconds' of a batch, 'images_per_second' (images over the sum of the times), 'kept' and
        'thresholds' (None for another backbone), and, on a GPU, 'peak_mib', the most that a step took beyond what was
        there; for the first of two 'speedup' and 'speedup_range', over the second, of the batches.
    """
    images = len(batches[0]['inputs'])
    turns = dict.fromkeys(contestants, 0)
    peaks = dict.fromkeys(contestants, 0)

    def run(name: str) -> float:
        batch = batches[turns[name] % len(batches)]
        turns[name] += 1
        marks, contestant = Marks(get_device(), clock), contestants[name]
        before = _reset_peak()
        marks.mark()
        contestant.step(batch)
        marks.mark()
        seconds = sum(marks.seconds().values())
        if before is not None and turns[name] > num_warmup:
            peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated() - before)
        return seconds

    times = interleave({name: lambda name=name: run(name) for name in contestants}, max_iter, num_warmup)
    results = {}
    for name, contestant in contestants.items():
        results[name] = dict(seconds=summary(times[name]), images_per_second=images * max_iter / sum(times[name]),
                             kept=contestant.tokens / contestant.cells if contestant.cells else None,
                             thresholds=getattr(getattr(contestant.model, 'backbone', None), 'thresholds', None))
        if peaks[name]:
            results[name]['peak_mib'] = peaks[name] / 2**20
    if len(times) == 2:
        (name, first), (_, second) = times.items()
        ratios = [b / a for a, b in zip(first, second, strict=True)]
        results[name] |= dict(speedup=statistics.median(ratios), speedup_range=[min(ratios), max(ratios)])
    return results


def _reset_peak() -> int | None:
    """Start a GPU's high-water mark anew; return what is allocated now, or None without a GPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def describe(results: dict[str, dict[str, Any]]) -> str:
    """A line for each model, and the speed-up of the first over the second."""
    lines = []
    for name, result in results.items():
        seconds = result['seconds']
        kept = '' if result['kept'] is None else f', kept tokens {result["kept"]:.3f}'
        thresholds = f', thresholds {result["thresholds"]}' if result['thresholds'] else ''
        peak = f', peak {result["peak_mib"]:.0f} MiB' if 'peak_mib' in result else ''
        lines.append(f'{name}: {result["images_per_second"]:.3f} img/s, a batch {format_seconds(seconds["median"])} '
                     f'({format_seconds(seconds["min"])} - {format_seconds(seconds["max"])}){kept}{thresholds}{peak}')
    lines += [f'speed-up: {result["speedup"]:.3f} (median over the batches)' for result in results.values()
              if 'speedup' in result]
    return '\n'.join(lines)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    compat.filter_library_warnings()
    if args.json:
        check_target(args.json, '--json')
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    chosen = [(args.config, args.checkpoint), *([(args.against, args.against_checkpoint)] if args.against else [])]
    configs = [launch.load_config(argparse.Namespace(**{**vars(args), 'config': path})) for path, _ in chosen]
    precision.set_float32_precision(configs[0])
    contestants: dict[str, Contestant] = {}
    with DefaultScope.overwrite_default_scope(launch.scope_of(configs[0])):
        batches = load_batches(configs[0], args)
        for cfg, (path, checkpoint) in zip(configs, chosen, strict=True):
            name = path if path not in contestants else f'{path} (again)'
            contestants[name] = build(cfg, checkpoint, args)
        results = compare(contestants, batches, args.max_iter, args.num_warmup, args.clock)
    setting = (f'{args.task}, batch {len(batches[0]["inputs"])}, {"mixed precision" if args.amp else "float32"}, '
               f'{device_name(get_device())}, {args.clock} time, {args.max_iter} batches')
    print(f'{setting}, torch {torch.__version__}\n{describe(results)}')
    if args.json:
        words = ['python tools/benchmark/benchmark_model.py', *(arguments or sys.argv[1:])]
        content = dict(environment=environment(words), setting=setting, results=results)
        write_atomically(args.json, json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
