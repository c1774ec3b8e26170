"""Processes that start in no time, of tools/train.py mostly: a server imports once, and they are forked from it."""
import importlib.util
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

from tests.locations import TOOLS

TOOL = TOOLS / 'train.py'
CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['apt_dense.mm.det', 'apt_dense.mm.cli.launch', 'mmdet.datasets', 'mmdet.evaluation'])


def free_port() -> str:
    """For the processes of one run to meet."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])


def train(log: Path, argv: list, kill_in_write: int = 0, **environment: str) -> multiprocessing.Process:
    """Start tools/train.py with options, in a process group of its own.

    Args:
        log: where its output is appended.
        kill_in_write: the process kills itself when half of this checkpoint, counted from 1, is on the disk.
        environment: variables to set.
    """
    log.touch()
    process = CONTEXT.Process(target=_train, args=(str(log), [str(item) for item in argv], kill_in_write, environment))
    process.start()
    return process


def _train(log: str, argv: list[str], kill_in_write: int, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    from apt_dense.mm.cli import launch
    from apt_dense.mm.fault_tolerance import checkpointing
    os.setsid()
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    import mmengine.config.config
    mmengine.config.config.FormatCode = lambda text, **options: (text, True)  # takes longer than the training
    written = []

    def sync(handle: int) -> None:
        if os.readlink(f'/proc/self/fd/{handle}').endswith('.pth.partial'):
            written.append(handle)
            if len(written) == kill_in_write:
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

    checkpointing.os.fsync = sync
    spec = importlib.util.spec_from_file_location('train', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    sys.argv = [str(TOOL), *argv]
    status = launch.run_tool(tool.main)
    sys.stdout.flush()
    os._exit(status)
