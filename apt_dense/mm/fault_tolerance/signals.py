"""Stop a training on a signal, with a checkpoint: what a cluster sends before it takes a machine away."""
import ctypes
import os
import signal
import sys
import threading
from typing import Any

import torch
from mmengine import dist
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from apt_dense.mm.fault_tolerance.checkpointing import SafeCheckpointHook

EXIT_STOPPED = os.EX_TEMPFAIL  # 75: not finished, start it again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class TrainingStopped(Exception):
    """Training has ended because of a signal; the message says where it can go on from."""


@HOOKS.register_module()
class StopOnSignalHook(Hook):
    """On SIGTERM or SIGUSR1 save a checkpoint after the current iteration, then end the training.

    With several processes it is enough that one gets the signal.  During validation nothing is saved, because what has
    been trained is in the checkpoint before it or is trained again: the process ends after the current batch.  Further
    signals change nothing.  The data loader's workers, to which a scheduler or torchrun sends the signal too, live on.

    With gradient accumulation the checkpoint waits for the optimiser's step, so that no gradient is lost.

    Raises:
        TrainingStopped: when the checkpoint is written; tools/train.py then exits with status 75 (EX_TEMPFAIL).
        ValueError: without a SafeCheckpointHook, which saves.
    """

    priority = 'LOWEST'

    def __init__(self):
        self._received = None
        self._previous = {}

    def before_train(self, runner: Runner) -> None:
        """Take over the signals; only the main thread can."""
        self._saver = next((hook for hook in runner.hooks if isinstance(hook, SafeCheckpointHook)), None)
        if self._saver is None:
            raise ValueError("StopOnSignalHook needs default_hooks=dict(checkpoint=dict(type='SafeCheckpointHook'))")
        self._received = None
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
            _shield_children(True)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save and stop, if any process was told to."""
        steps = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if (runner.iter + 1) % steps or not self._any_received():
            return
        path = self._saver.save_now(runner)
        dist.barrier()  # the end of one process may end the others
        self._stop(runner, f'stopped by {self._name()} after iteration {runner.iter + 1}; saved {path}')

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stop without agreement: the numbers of batches may differ, and nothing is written."""
        if self._received is not None:
            self._stop(runner, f'stopped by {self._name()} in the validation after iteration {runner.iter}; the last '
                               f'checkpoint is {runner.message_hub.get_info("last_ckpt")}')

    def after_train(self, runner: Runner) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        _shield_children(False)

    def _note(self, number: int, frame: Any) -> None:
        self._received = number

    def _name(self) -> str:
        return signal.Signals(self._received).name if self._received is not None else "another process's signal"

    def _any_received(self) -> bool:
        if dist.get_world_size() == 1:
            return self._received is not None
        received = torch.tensor(int(self._received is not None), device=get_device())
        dist.all_reduce(received, 'max')
        return bool(received)

    def _stop(self, runner: Runner, message: str) -> None:
        runner.logger.warning(message)
        runner.visualizer.close()
        self.after_train(runner)
        raise TrainingStopped(f'{message}. Go on with --resume')


_shielding = False
_registered = False


def _shield_children(on: bool) -> None:
    """Let processes that are forked from now on ignore SIGNALS, unless their parent sends them, and end with it."""
    global _shielding, _registered
    _shielding = on
    if not _registered:  # this cannot be undone
        os.register_at_fork(after_in_child=_shield)
        _registered = True


def _shield() -> None:
    if _shielding:
        _end_with_parent()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_obey_the_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone (Linux).

    A data loader's worker notices that itself, but then waits for ever to get rid of what it has loaded: killed runs
    would leave their workers, and their memory, behind.
    """
    parent = os.getppid()
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the call
        os._exit(1)


def _obey_the_parent() -> None:
    """multiprocessing ends the workers that are left with SIGTERM; a signal of anyone else is meant for the parent."""
    while True:
        info = signal.sigwaitinfo(SIGNALS)
        if info.si_signo == signal.SIGTERM and info.si_pid == os.getppid():
            os._exit(0)
