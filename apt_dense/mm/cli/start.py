"""What a run starts from: rank 0 chooses the checkpoint, all others check that they have the same one."""
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed
from mmengine import dist
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.utils.dl_utils import set_multi_processing

from apt_dense.core.checkpoint_files import load_official, read_pickle
from apt_dense.core.eva02_keys import describe_other, looks_official
from apt_dense.mm import compat
from apt_dense.mm.cli.device import check_device
from apt_dense.mm.cli.waiting import others, said_while_waiting
from apt_dense.mm.errors import LaunchError
from apt_dense.mm.fault_tolerance import checkpointing
from apt_dense.mm.fault_tolerance.leftovers import checkpoint_folders, checkpoint_names

SCOPES = {'mmdet': 'detector', 'mmseg': 'segmentor', 'mmengine': 'classifier'}  # default_scope -> what is trained
# Beginnings of names in bare vision transformers and in detectron2's models, which no model of mmdetection or
# mmsegmentation has.
OTHER_MODELS = ('blocks.', 'patch_embed.', 'backbone.net.', 'backbone.simfp_', 'proposal_generator.', 'roi_heads.')


class Start(NamedTuple):
    """What a run starts from.

    Attributes:
        path: a checkpoint, or None for initial weights.
        resume: True if the training goes on where the checkpoint was written.
        source: where the path comes from, for messages.
        identity: of the file, see ``checkpointing.checkpoint_identity``; '' for an address.
        iteration: of the run that is resumed; None if the file does not say, as ``seed``.
        seed: of the run that is resumed.
    """
    path: str | None
    resume: bool = False
    source: str = ''
    identity: str = ''
    iteration: int | None = None
    seed: int | None = None


def check_checkpoint(path: str, source: str, part: bool = False) -> None:
    """Check that a checkpoint is there, safe to load, and not an official EVA-02 file that must be converted first.

    mmengine would load an official file, or one of another vision transformer, without a word, and without its weights:
    their names differ.  Addresses with a scheme (https://, torchvision://) are mmengine's to resolve.

    Args:
        source: where the path comes from, for the message.
        part: it is for a part of the model, whose names only that part knows.

    Raises:
        LaunchError: if it is not.
    """
    if '://' in path:
        return
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        found = checkpointing.find_checkpoints(path)
        file = f'name a file of it: {found[0]}' if found else 'name a file'
        raise LaunchError(f'checkpoint {described(path)} is a folder ({source}): {file}. --resume without a value '
                          'takes the last one of --work-dir')
    if not os.path.isfile(path):
        raise LaunchError(f'checkpoint {described(path)} does not exist ({source})')
    if path.endswith('.safetensors'):
        raise LaunchError(f'{path}: mmengine reads no safetensors ({source}). Convert it: python '
                          f'tools/model_converters/eva02_to_mm.py {path} CONVERTED.pth')
    try:
        state, _, _ = load_official(path)
    except ValueError as error:
        raise LaunchError(f'{error} ({source})') from error
    task = looks_official(state)
    if task:
        raise LaunchError(f'{path} is an official EVA-02 {task} checkpoint, whose parameters have other names '
                          f'({source}). Convert it: python tools/model_converters/eva02_to_mm.py {path} CONVERTED.pth')
    if not part and any(name.removeprefix('module.').startswith(OTHER_MODELS) for name in state):
        raise LaunchError(f'{path} is no checkpoint of this project ({source}): its keys belong to no official EVA-02 '
                          f'checkpoint: {describe_other(state, "backbone.")}')


def described(path: str) -> str:
    """The path; a relative one with the directory that it is relative to, the usual mistake."""
    return path if os.path.isabs(path) else f'{path} (in {os.getcwd()})'


def set_start(cfg: Config, resume: str | None) -> None:
    """Decide what training starts from: ``cfg.resume`` and ``cfg.load_from``.

    With several processes, which this function starts, rank 0 decides, so that no machine goes on from its own
    directory.  The others read only the table of contents of the file that it names.

    Deviations from mmdetection: 'auto' in a work directory without a checkpoint keeps load_from, which mmdetection
    drops, so that a job script may always pass --resume; and it passes over a damaged checkpoint.  The checkpoint's
    seed becomes the config's: the order of the data follows from it.

    Args:
        resume: a checkpoint, 'auto' for the last whole one of the work directory, or None for what the config says.

    Raises:
        LaunchError: if a checkpoint is missing, is not the same for all processes, or the config has
            ``requires_load_from`` and there is nothing to start from.
    """
    start_processes(cfg)
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    start = decide_together(lambda: _find_start(cfg, resume), _check_start)
    if resume == 'auto' and not start.resume:
        _report_no_checkpoint(cfg)
    elif not start.resume and dist.get_rank() == 0:
        _warn_of_earlier_run(cfg)
    cfg.resume = start.resume
    if start.resume:
        cfg.load_from = start.path
    if start.seed is not None:
        randomness = cfg.get('randomness') or {}
        if randomness.get('seed', start.seed) not in (start.seed, None) and dist.get_rank() == 0:
            print_log(f'randomness.seed is {randomness["seed"]} in the config and {start.seed} in the checkpoint, '
                      'which is kept, because the order of the data follows from it', level=logging.WARNING)
        cfg.randomness = dict(randomness, seed=start.seed)


def set_tested(cfg: Config, path: str, source: str) -> None:
    """Test a checkpoint: ``cfg.load_from``; with several processes the same file for all, as for training.

    Raises:
        LaunchError: as ``check_checkpoint``, or if it is not the same for all processes.
    """
    start_processes(cfg)
    decide_together(lambda: _described_start(path, False, source), _check_start)
    cfg.load_from, cfg.resume = path, False


def _find_start(cfg: Config, resume: str | None) -> Start:
    load_from = cfg.get('load_from')
    latest = resume
    if resume == 'auto':
        latest = checkpointing.find_last_good_checkpoint(cfg.work_dir, *checkpoint_folders(cfg),
                                                         names=checkpoint_names(cfg))
    if latest:
        return _described_start(latest, True, f'{cfg.work_dir}/last_checkpoint; name another: --resume PATH'
                                if resume == 'auto' else '--resume')
    if load_from:
        return _described_start(load_from, False, 'load_from')
    if cfg.get('requires_load_from'):
        model = SCOPES.get(cfg.get('default_scope'), 'detector')
        raise LaunchError(f'{cfg.filename} fine-tunes a trained dense {model}, and no checkpoint of one is given: '
                          'set it with `--cfg-options load_from=PATH`, or use the *_full config to train from the '
                          'pre-trained backbone')
    return Start(None)


def _report_no_checkpoint(cfg: Config) -> None:
    """Say that training starts anew, and where else than in rank 0's directory there are checkpoints."""
    if dist.get_rank() == 0:
        print_log(f'{cfg.work_dir} has no checkpoint to resume: training starts at iteration 0')
        return
    found = checkpointing.find_checkpoints(cfg.work_dir, *checkpoint_folders(cfg), names=checkpoint_names(cfg))
    if found:
        print_log(f'{described(str(found[0]))} is on {socket.gethostname()}, and rank 0 has no checkpoint: training '
                  'starts at iteration 0. To resume, let all machines share the folder, or copy the file to where rank '
                  '0 runs', level=logging.WARNING)


def _warn_of_earlier_run(cfg: Config) -> None:
    """Say that this training will write over another's checkpoints."""
    found = checkpointing.find_checkpoints(cfg.work_dir, *checkpoint_folders(cfg), names=checkpoint_names(cfg))
    found = [path for path in found if path.is_file()]
    if found:
        many = f'{len(found)} checkpoint{"s" * (len(found) > 1)}'
        print_log(f'{cfg.work_dir} has {many} of an earlier training, the last of them {found[0].name}, and this one '
                  'starts anew: it writes over them. To go on with the earlier one, stop this and add --resume; to '
                  'keep it, choose another --work-dir', level=logging.WARNING)


def _described_start(path: str, resume: bool, source: str) -> Start:
    check_checkpoint(path, source)
    if '://' in path:
        return Start(path, resume, source)
    meta = _meta(path) if resume else {}
    return Start(path, resume, source, checkpointing.checkpoint_identity(path), meta.get('iter'), meta.get('seed'))


def _meta(path: str) -> dict:
    """What a checkpoint says of its run.  Its tensors stay on the disk."""
    return read_pickle(Path(os.path.expanduser(path))).get('meta') or {}


def _check_start(start: Start) -> None:
    """Check that this process has the file that rank 0 starts from."""
    if start.path is None or '://' in start.path:
        return
    remedy = (f'Rank 0 starts from it: let all machines share the folder, or copy the file from there to '
              f'{socket.gethostname()}')
    try:
        check_checkpoint(start.path, start.source)
    except LaunchError as error:
        raise LaunchError(f'{error}. {remedy}') from error
    if checkpointing.checkpoint_identity(start.path) != start.identity:
        iterations = f', of iteration {_meta(start.path).get("iter")}, not {start.iteration}' if start.resume else ''
        raise LaunchError(f'checkpoint {described(start.path)} is another file here than for rank 0{iterations} '
                          f'({start.source}). {remedy}')


def start_processes(cfg: Config) -> None:
    """Make the process group of the launcher, as the runner would later; without a launcher, only check the device.

    Raises:
        LaunchError: for a launcher that does not work on this machine, a port that is in use, or a GPU that is not.
    """
    check_device()
    launcher = cfg.get('launcher', 'none')
    try:
        compat.setup_cpu_ddp(cfg)
        if launcher != 'none' and not dist.is_distributed():
            settings = cfg.get('env_cfg') or {}
            set_multi_processing(**settings.get('mp_cfg', {}), distributed=True)
            with said_while_waiting():
                dist.init_dist(launcher, **settings.get('dist_cfg', {}))
    except ValueError as error:
        raise LaunchError(str(error)) from error
    except RuntimeError as error:  # torch has no class of its own for a port in use before 2.5
        if isinstance(error, torch.distributed.DistError) and 'EADDRINUSE' not in str(error):
            raise LaunchError(f'{others()} cannot be reached: {" ".join(str(error).split())}') from error
        if 'EADDRINUSE' not in str(error):
            raise
        port = os.environ.get('MASTER_PORT', '29500')
        raise LaunchError(f'port {port} of {os.environ.get("MASTER_ADDR", "this machine")} is in use, perhaps by '
                          'another training: choose another, PORT=NUMBER for tools/dist_train.sh, MASTER_PORT=NUMBER '
                          'for Slurm and mpirun') from error


def decide_together(decide: Callable[[], Any], check: Callable[[Any], None]) -> Any:
    """Let rank 0 decide and all other ranks check that they can follow; a single process only decides.

    An error in one process ends all, instead of letting the others wait for it.

    Args:
        decide: returns something that can be pickled.
        check: takes that; raises LaunchError.

    Returns:
        What ``decide`` has returned on rank 0.

    Raises:
        LaunchError: if rank 0 has failed, or if check has, there or elsewhere.
        Exception: on rank 0, what ``decide`` has raised.
    """
    if dist.get_world_size() == 1:
        return decide()
    decision, failure = None, None
    if dist.get_rank() == 0:
        try:
            decision = decide()
        except Exception as error:  # raised again when the others know
            failure = error
    message = [decision, failure is not None]
    dist.broadcast_object_list(message)
    if failure is not None:
        raise failure
    if message[1]:
        raise LaunchError('rank 0 cannot start, and says why')
    problem = None
    if dist.get_rank() > 0:
        try:
            check(message[0])
        except LaunchError as error:
            problem = str(error)
    problems = dist.all_gather_object(problem)
    if problem:
        raise LaunchError(problem)
    failed = [rank for rank, text in enumerate(problems) if text]
    if failed:
        raise LaunchError(f'rank {failed[0]} cannot start: {problems[failed[0]]}')
    return message[0]
