"""What tools/train.py and tools/test.py share: their options, and checks that fail early and say what to do."""
import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch.distributed.elastic.multiprocessing.errors import record

from apt_dense.mm import compat
from apt_dense.mm.cli import loading
from apt_dense.mm.cli.config_files import find_config, read_config
from apt_dense.mm.cli.device import set_local_rank
from apt_dense.mm.cli.failures import user_message
from apt_dense.mm.cli.precision import set_float32_precision
from apt_dense.mm.cli.start import SCOPES, check_checkpoint, start_processes
from apt_dense.mm.errors import LaunchError
from apt_dense.mm.fault_tolerance import checkpointing, leftovers, signals
from apt_dense.mm.models.fitting import check_model_fits
from apt_dense.mm.models.normalisation import check_model_normalisation
from apt_dense.mm.preflight.configs_kinds import check_root
from apt_dense.mm.preflight.findings import raise_if_stopped
from apt_dense.mm.preflight.options import OptionsAction, merge_options
from apt_dense.mm.training.hooks import unwrapped

LAUNCHERS = ('pytorch', 'slurm', 'mpi')
RANK_VARIABLES = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')  # of each of them


def run_tool(main: Callable[[], int | None]) -> int:
    """Run a tool's main function; print what the user can act on as one message.

    With several processes each prints its own, with its rank: what fails in one of them is known to no other.  torchrun
    repeats the first in its report.

    Returns:
        The exit status: what ``main`` returns, or 0; 2 after an error that the user can mend
        (``failures.user_message``); 75 if a signal has stopped the training, which can then go on.
    """
    rank = rank_of(_launcher())
    of_rank = '' if rank is None else f'rank {rank}: '
    status = 0
    try:
        # Only the agent of torchrun has use for a record, and sets the variable.
        status = (record(main) if 'TORCHELASTIC_ERROR_FILE' in os.environ else main)() or 0
    except signals.TrainingStopped as stopped:
        status = signals.EXIT_STOPPED
        print(f'{of_rank}{stopped}', file=sys.stderr)
    except Exception as error:
        if (message := user_message(error)) is None:
            if of_rank:  # a traceback does not say whose it is
                _failed(f'{of_rank}{type(error).__name__}, see its traceback')
            raise
        status = _failed(f'{of_rank}{message}')
    if status in (0, signals.EXIT_STOPPED) and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return status


def _failed(message: str) -> int:
    print(f'error: {message}', file=sys.stderr)
    return 2


def _launcher() -> str:
    """The launcher that the command names: known also where its config cannot be read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--launcher', nargs='?', default='none')
    return parser.parse_known_args()[0].launcher


def rank_of(launcher: str) -> int | None:
    """This process's rank as its launcher says; None without a launcher, whatever the environment holds.

    A shell inside a Slurm job has SLURM_PROCID, and a run of one process in it is a run like any other.
    """
    if launcher not in LAUNCHERS:
        return None
    text = os.environ.get(RANK_VARIABLES[LAUNCHERS.index(launcher)], '0')
    return int(text) if text.isdecimal() else None  # ``load_config`` says what is wrong


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that mmdetection's train and test tools have in common."""
    parser.add_argument('--work-dir', help='where logs, checkpoints and metrics go (work_dirs/NAME_OF_THE_CONFIG)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE',
        help='change settings of the config: a.b=1 a.c="[1,2]" d.0.e=x; no spaces inside a value')
    parser.add_argument('--launcher', choices=['none', *LAUNCHERS], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch')


def add_check_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that leaves out the preflight."""
    parser.add_argument('--no-check', action='store_true',
                        help='start without checking config, options and data first (tools/check_data.py does that '
                        'alone)')


def load_config(args: argparse.Namespace) -> Config:
    """Read the config that the command names and put the common options into it.

    Args:
        args: has config (a file, or the name of one of this project's), cfg_options, launcher, work_dir and local_rank.

    Raises:
        LaunchError: if the config or one of its bases cannot be read, an option does not fit it or is read by nothing,
            or a launcher's environment is missing.
        PreflightError: if a setting is of another kind than every program reads.
    """
    find_config(args.config)
    set_local_rank(args.launcher, args.local_rank)
    if args.launcher == 'pytorch' and 'RANK' not in os.environ:
        raise LaunchError('--launcher pytorch without torchrun (RANK is not set): start with tools/dist_train.sh or '
                          'tools/dist_test.sh')
    _check_environment(args.launcher)
    cfg = read_config(args.config)
    warnings = merge_options(cfg, args.cfg_options or {}, strict=not getattr(args, 'no_check', False))
    if not rank_of(args.launcher):
        print(''.join(f'warning: {text}\n' for text in warnings), end='', file=sys.stderr)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or os.path.join('work_dirs', Path(args.config).stem)
    raise_if_stopped(check_root(cfg))
    return cfg


def _check_environment(launcher: str) -> None:
    """Check what the launcher has set, which torch and mmengine take for numbers."""
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE') if launcher == 'pytorch' else ():
        text = os.environ.get(name, '0')
        if not text.isdecimal():
            raise LaunchError(f'the environment has {name}={text!r}, wanted a whole number: torchrun sets it, start '
                              'with tools/dist_train.sh or tools/dist_test.sh')
    port = os.environ.get('MASTER_PORT', '29500')
    if launcher != 'none' and not (port.isdecimal() and int(port) < 2**16):
        raise LaunchError(f'the environment has MASTER_PORT={port!r}, wanted a number from 0 to {2**16 - 1}')


def scope_of(cfg: Config) -> str:
    """The config's default_scope, one of ``SCOPES``.

    Raises:
        LaunchError: if it is another, or none.
    """
    scope = cfg.get('default_scope')
    if scope not in SCOPES:
        raise LaunchError(f"default_scope={scope!r}: set it to 'mmdet' (detection), 'mmseg' (segmentation) or "
                          "'mmengine' (classification)")
    return scope


def check_trainable(cfg: Config) -> None:
    """Check that the config says how to train.

    Raises:
        LaunchError: if it does not, as a config that is only for testing.
    """
    absent = [key for key in ('train_dataloader', 'train_cfg', 'optim_wrapper') if not cfg.get(key)]
    if absent:
        raise LaunchError(f'{cfg.filename} has no {", ".join(absent)}: there is nothing to train, evaluate it with '
                          'tools/test.py')


@contextmanager
def claim_output_dirs(cfg: Config) -> Iterator[None]:
    """Hold the work directory for one run while the context is open, from the first process; see checkpointing.

    So are the directories that checkpoint hooks write into with ``out_dir``: two runs whose work directories have one
    name share them.
    """
    with ExitStack() as stack:
        if not rank_of(cfg.get('launcher', 'none')):
            for folder in (cfg.work_dir, *leftovers.checkpoint_folders(cfg)):
                stack.enter_context(checkpointing.claim_work_dir(folder, leftovers.checkpoint_names(cfg)))
        yield


def check_pretrained(node: Any, key: str = 'model') -> None:
    """Check that the checkpoints which a model's ``init_cfg`` settings name are there.

    Args:
        node: the config's ``model``, or a part of it.
        key: its key.

    Raises:
        LaunchError: if one is not.
    """
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            check_pretrained(item, f'{key}.{index}')
    elif isinstance(node, dict):
        if node.get('type') in ('Pretrained', PretrainedInit):
            if 'checkpoint' not in node:
                raise LaunchError(f"{key}=dict(type='Pretrained') names no file: add checkpoint=PATH, or start from "
                                  f'random weights: {key}=None')
            check_checkpoint(node['checkpoint'], f'{key}.checkpoint; name yours: --cfg-options {key}.checkpoint=PATH, '
                             f'or start from random weights: {key}=None', part=True)
        for name, item in node.items():
            check_pretrained(item, f'{key}.{name}')


def set_auto_scale_lr(cfg: Config) -> None:
    """Switch on mmengine's scaling of the learning rate by (batch size / base batch size).

    Raises:
        LaunchError: if the config does not give the base batch size.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise LaunchError('--auto-scale-lr needs the batch size that the learning rate is meant for: set '
                          'auto_scale_lr=dict(base_batch_size=N) in the config')
    cfg.auto_scale_lr.enable = True


def build_runner(cfg: Config) -> Runner:
    """Build the runner, with the fixes that depend on the launcher and the scope, and without the libraries' noise.

    It checks what is loaded, see ``CheckLoadedHook``.

    Raises:
        LaunchError: for a launcher that does not work on this machine, a GPU without a detector's operators, or an
            unknown ``float32_matmul_precision``.
        DataError: if parts of the model do not fit each other, or the normalisation the backbone.
    """
    start_processes(cfg)
    set_float32_precision(cfg)
    present = [hook['type'] for hook in cfg.get('custom_hooks') or ()]
    if loading.CheckLoadedHook.__name__ not in present:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or ()), dict(type=loading.CheckLoadedHook.__name__)]
    compat.filter_library_warnings()
    runner = Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)
    compat.filter_library_warnings(runner.logger)
    model = unwrapped(getattr(runner, 'model', None))  # a runner of another type may build it later
    check_model_normalisation(model)
    check_model_fits(model)
    if runner.logger is not None:
        compat.log_core_to(runner.logger)
    _log_operators(cfg)
    return runner


def _log_operators(cfg: Config) -> None:
    """Say where RoIAlign and NMS come from, which detectors need.

    Raises:
        LaunchError: if there are none for this machine's device.
    """
    if cfg.get('default_scope') == 'mmdet':
        try:
            print_log(compat.describe_operators(get_device()), 'current')
        except ImportError as error:
            raise LaunchError(str(error)) from error
