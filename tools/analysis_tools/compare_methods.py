#!/usr/bin/env python
"""Accuracy against measured speed and kept tokens, for APT and for merging or dropping tokens inside the network.

    python tools/analysis_tools/compare_methods.py configs/apt_vit_ti_demo_cls.py dense.pth
    python tools/analysis_tools/compare_methods.py apt_cls.py dense_cls.pth apt_det.py dense_det.pth --budgets 0.7 0.5
    python tools/analysis_tools/compare_methods.py configs/apt_vit_b_in1k_384.py vit_b_384.pth --train

Each config is one with APT, and its checkpoint the dense model's, from which all methods start: classification (top-1),
detection (box mAP) or segmentation (mIoU).  Every method is tested at every budget, the mean share over the layers of
the tokens that are left; APT's thresholds are found on the test pictures without looking at labels.  Without --train
nothing is trained: then APT's detail branch, which starts at zero, adds nothing.  With --train each method first
trains by the config's own schedule, all of them the same, and so does the dense model.

A method's time and the dense model's are measured in turns, on the same batches in memory, and the speed-up is the
median of the ratios.  A run that was stopped goes on where it was: what is finished stands in OUT_DIR/methods.json.
Written besides: methods.png, a panel for each config, and methods.md, the tables.
"""
import argparse
import hashlib
import io
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from methods import LEARNT, METHODS, Maker, RowCounter, Setting, check_learnt, dense_options
from methods_report import draw, table

from apt_dense.benchmark.measure import Marks, interleave, keep_freed_memory
from apt_dense.benchmark.run import device_name, environment
from apt_dense.core.checkpoint_files import load_official
from apt_dense.core.files import check_folder, write_atomically
from apt_dense.extras import from_extra

with from_extra('mm'):
    from mmengine.config import Config
    from mmengine.device import get_device
    from mmengine.evaluator import Evaluator
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, DefaultScope
    from mmengine.runner import Runner, find_latest_checkpoint
    from tqdm import tqdm

    import apt_dense.mm  # noqa: F401
    from apt_dense.mm.cli.config_files import read_config
    from apt_dense.mm.cli.dataset_files import check_dataset_files
    from apt_dense.mm.cli.launch import run_tool, scope_of
    from apt_dense.mm.cli.loading import load_weights
    from apt_dense.mm.cli.start import check_checkpoint
    from apt_dense.mm.data.inputs import ConfigInputs
    from apt_dense.mm.errors import DataError, LaunchError
    from apt_dense.mm.inference.calibrating import score_all
    from apt_dense.mm.preflight.options import OptionsAction, merge_options

TRAIN = Path(__file__).parents[1] / 'train.py'


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pairs', nargs='+', metavar='CONFIG CHECKPOINT', help='a config with APT, a dense checkpoint')
    parser.add_argument('--methods', nargs='+', choices=METHODS, help='(all that need no training; with --train all)')
    parser.add_argument('--budgets', nargs='+', type=float, default=[0.9, 0.7, 0.5],
                        help='wanted shares of the tokens (%(default)s)')
    parser.add_argument('--train', action='store_true', help="train each method by the config's schedule first")
    parser.add_argument('--time-batches', type=int, default=4, help='batches that are timed (%(default)s)')
    parser.add_argument('--rounds', type=int, default=3, help='times each (%(default)s)')
    parser.add_argument('--clock', choices=['process', 'wall'], default='process',
                        help='on a CPU; process: processor time of this process (default)')
    parser.add_argument('--out-dir', type=Path, default=Path('methods'), help='(%(default)s)')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, default={}, metavar='KEY=VALUE')
    args = parser.parse_args(arguments)
    if len(args.pairs) % 2:
        parser.error(f'got {len(args.pairs)} files: give each config with its checkpoint behind it')
    if outside := [budget for budget in args.budgets if not 0 < budget < 1]:
        parser.error(f'--budgets {outside[0]:g}: wanted shares of the tokens, above 0 and below 1')
    for name in ('time_batches', 'rounds'):
        if getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} {getattr(args, name)}: wanted 1 or more')
    args.methods = args.methods or [name for name in METHODS if args.train or name not in LEARNT]
    return args


class Comparison:
    """The methods on one config: their settings, training, accuracy and speed.

    Args:
        args: of the command.
        path: the config.
        checkpoint: of the dense model.

    Raises:
        LaunchError, DataError: for a config without APT, or data or a checkpoint that are not there or do not fit.
    """

    def __init__(self, args: argparse.Namespace, path: str, checkpoint: str):
        self.args, self.path, self.checkpoint = args, path, checkpoint
        self.cfg = read_config(path)
        merge_options(self.cfg, args.cfg_options)
        self.name = Path(self.cfg.filename).stem
        scope_of(self.cfg)
        check_checkpoint(checkpoint, f'for {path}')
        self.state = load_official(checkpoint)[0]
        check_dataset_files(self.cfg, 'test')
        if self.cfg.model.backbone.get('num_scales', 1) < 2:
            raise DataError(f'{path} has one size of patches: give a config with APT, its dense twin is measured too')
        with self.in_scope():
            self.loader = Runner.build_dataloader(self.cfg.test_dataloader, seed=0)
            self.batches = list(islice(self.loader, args.time_batches))

    def in_scope(self) -> Any:
        """Context in which registries are asked."""
        return DefaultScope.overwrite_default_scope(self.cfg.default_scope)

    def identity(self) -> str:
        """What the figures depend on, but for the code."""
        with open(self.checkpoint, 'rb') as file:
            weights = hashlib.file_digest(file, 'sha256').hexdigest()
        text = f'{self.cfg.pretty_text}{weights}{self.args.train}{self.args.time_batches}{self.args.rounds}'
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def settings(self) -> list[Setting]:
        """The dense model first; each method's budgets from the most to the fewest tokens."""
        maps = score_all(tqdm_inputs(ConfigInputs(self.cfg)))
        maker = Maker(tuple(self.cfg.model.backbone.thresholds), maps)
        found = [Setting('dense', 1.0, dense_options())]
        for method in self.args.methods:
            for budget in sorted(self.args.budgets, reverse=True):
                try:
                    found.append(Setting(method, budget, METHODS[method][1](maker, budget)))
                except ValueError as error:  # thresholds
                    print(f'{self.name}: {METHODS[method][0]} at {budget:g} is left out: {error}', file=sys.stderr)
        return found

    def build(self, setting: Setting, checkpoint: str) -> torch.nn.Module:
        """The model of a setting with its weights, in eval mode.

        Raises:
            DataError: for weights that do not fit.
        """
        cfg = Config(self.cfg.to_dict())
        cfg.merge_from_dict(setting.options)
        with self.in_scope():
            model = revert_sync_batchnorm(MODELS.build(cfg.model))
        with redirect_stdout(io.StringIO()):  # mmengine prints what was found here already
            load_weights(model, checkpoint)
        return model.eval().requires_grad_(False).to(get_device())

    def train(self, setting: Setting, folder: Path) -> str:
        """Train a setting by the config's schedule, or go on; its last checkpoint.

        Raises:
            LaunchError: if the training fails; its log says why.
        """
        words = option_words(self.args.cfg_options | setting.options | {'load_from': self.checkpoint})
        command = [sys.executable, str(TRAIN), self.path, '--work-dir', str(folder), '--resume', '--cfg-options']
        check_folder(folder, '--out-dir')
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / 'train.log', 'a') as log:
            status = subprocess.run([*command, *words], stdout=log, stderr=log).returncode
        if status:
            raise LaunchError(f'{self.name}: training {setting.name} failed with status {status}: '
                              f'{folder / "train.log"}')
        return find_latest_checkpoint(str(folder))

    @torch.no_grad()
    def accuracy(self, model: torch.nn.Module) -> dict[str, float]:
        """The evaluator's metrics, and the kept tokens."""
        counter = RowCounter(model.backbone)
        with self.in_scope(), redirect_stdout(io.StringIO()):
            evaluator = Evaluator(self.cfg.test_evaluator)
            evaluator.dataset_meta = self.loader.dataset.metainfo
            for batch in self.loader:
                evaluator.process(data_samples=model.test_step(batch), data_batch=batch)
            metrics = evaluator.evaluate(len(self.loader.dataset))
        return {name: float(value) for name, value in metrics.items()} | dict(kept=counter.kept)

    @torch.no_grad()
    def speed(self, dense: torch.nn.Module, model: torch.nn.Module) -> dict[str, Any]:
        """The dense model's time over this one's, of the backbone and of the model, median and range."""
        turns = dict.fromkeys(('dense', 'own'), 0)

        def run(name: str) -> dict[str, float]:
            turns[name] += 1
            one = dense if name == 'dense' else model
            marks = Marks(get_device(), self.args.clock)
            handles = marks.hook('backbone', one.backbone)
            marks.mark()
            one.test_step(self.batches[(turns[name] - 1) % len(self.batches)])
            marks.mark()
            for handle in handles:
                handle.remove()
            seconds = marks.seconds()
            return dict(backbone=seconds['backbone'], model=sum(seconds.values()))

        with self.in_scope():
            times = interleave({name: lambda name=name: run(name) for name in turns},
                               len(self.batches) * self.args.rounds, len(self.batches))
        result = {}
        for part in ('backbone', 'model'):
            ratios = [one[part] / own[part] for one, own in zip(times['dense'], times['own'], strict=True)]
            result[part] = [statistics.median(ratios), min(ratios), max(ratios)]
        return result

    def run(self, results: dict[str, dict], save: Callable[[], None]) -> None:
        """Measure what is not in the results; save after each."""
        dense_model = None
        for setting in self.settings():
            if setting.name in results:
                continue
            print(f'{self.name}: {setting.name}', flush=True)
            why = self.refusal(setting)
            if why:
                results[setting.name] = dict(method=setting.method, budget=setting.budget, refused=why)
                print(f'  left out: {why}', file=sys.stderr)
            else:
                checkpoint = self.train(setting, self.args.out_dir / self.name / setting.name) if self.args.train else (
                    self.checkpoint)
                model = self.build(setting, checkpoint)
                dense_model = dense_model or self.build(Setting('dense', 1.0, dense_options()), self.checkpoint)
                results[setting.name] = dict(method=setting.method, budget=setting.budget, options=setting.options,
                                             **self.accuracy(model), speedup=self.speed(dense_model, model))
            save()

    def refusal(self, setting: Setting) -> str | None:
        """Why the model cannot have this setting; None if it can."""
        cfg = Config(self.cfg.to_dict())
        cfg.merge_from_dict(setting.options)
        try:
            with self.in_scope(), torch.device('meta'):
                MODELS.build(cfg.model)
        except ValueError as error:
            return str(error)
        return None if self.args.train else check_learnt(self.state, setting.options)


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options as --cfg-options takes them: each entry of a dict by its own name, no spaces."""
    words = []
    for key, value in options.items():
        if isinstance(value, dict):
            words += option_words({f'{key}.{name}': inner for name, inner in value.items()})
        else:
            words.append(f'{key}={value!r}'.replace(' ', '') if isinstance(value, tuple) else f'{key}={value}')
    return words


def tqdm_inputs(inputs: ConfigInputs) -> ConfigInputs:
    """The same inputs; a bar shows how many are scored."""
    bar = tqdm(total=len(inputs), desc='scoring', unit='image', disable=None)
    score = inputs.score

    def counted(index: int) -> Any:
        bar.update()
        return score(index)
    inputs.score = counted
    return inputs


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    check_folder(args.out_dir, '--out-dir')
    keep_freed_memory()
    comparisons = [Comparison(args, *args.pairs[index:index + 2]) for index in range(0, len(args.pairs), 2)]
    target = args.out_dir / 'methods.json'
    content: dict[str, Any] = json.loads(target.read_text(encoding='utf-8')) if target.is_file() else dict(configs={})
    content['environment'] = environment(['python tools/analysis_tools/compare_methods.py',
                                          *(arguments or sys.argv[1:])])

    def save() -> None:
        write_atomically(target, json.dumps(content, indent=1) + '\n')

    for comparison in comparisons:
        entry = content['configs'].get(comparison.name)
        if entry is None or entry['identity'] != comparison.identity():
            entry = content['configs'][comparison.name] = dict(identity=comparison.identity(), results={})
        comparison.run(entry['results'], save)
    shown = {one.name: content['configs'][one.name]['results'] for one in comparisons}
    how = f'{"trained" if args.train else "untrained"}; {device_name(get_device())}'
    write_atomically(args.out_dir / 'methods.md', '\n'.join(table(name, rows) for name, rows in shown.items()))
    draw(args.out_dir / 'methods.png', shown, how)
    print('\n'.join(table(name, rows) for name, rows in shown.items()))
    print(f'-> {args.out_dir}/methods.json, methods.md, methods.png')


if __name__ == '__main__':
    sys.exit(run_tool(main))
