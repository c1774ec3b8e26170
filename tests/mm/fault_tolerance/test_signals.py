"""A signal ends the training after the iteration, with a checkpoint; workers live on until their parent ends them."""
import multiprocessing
import os
import signal
import time

import pytest
import torch

from apt_dense.mm.cli import launch
from apt_dense.mm.fault_tolerance import signals
from apt_dense.mm.fault_tolerance.run_comparison import logged
from apt_dense.mm.fault_tolerance.signals import TrainingStopped
from tests.mm.toys import LOADED, run_toy

PLAIN = dict(logger=dict(type='LoggerHook', interval=1), checkpoint=dict(
    type='CheckpointHook', by_epoch=False, interval=100, save_last=False))


def send(number):
    """A hook that sends this process a signal before its fourth iteration."""
    return [dict(type='InterruptHook', action=lambda: os.kill(os.getpid(), number), train_iter=3)]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_and_stops(tmp_path, number):
    before = [signal.getsignal(each) for each in signals.SIGNALS]
    with pytest.raises(TrainingStopped, match=rf'by {number.name} after iteration 4; saved .*iter_4\.pth\. Go '):
        run_toy(tmp_path / 'parts', default_hooks=PLAIN, custom_hooks=send(number))
    assert [signal.getsignal(each) for each in signals.SIGNALS] == before
    assert (tmp_path / 'parts/last_checkpoint').read_text() == str(tmp_path / 'parts/iter_4.pth')
    run_toy(tmp_path / 'parts', resume='iter_4.pth', default_hooks=PLAIN)
    assert len(LOADED) == 12
    run_toy(tmp_path / 'whole', default_hooks=PLAIN)
    assert logged(tmp_path / 'whole') == logged(tmp_path / 'parts')


def test_within_an_epoch(tmp_path):
    settings = dict(train_cfg=dict(by_epoch=True, max_epochs=2), train_dataloader=dict(
        dataset=dict(type='ToyDataset'), batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler')),
        default_hooks=dict(PLAIN, checkpoint=dict(type='CheckpointHook', interval=1)))
    with pytest.raises(TrainingStopped, match=r'saved .*stopped\.pth'):
        run_toy(tmp_path / 'parts', **settings, custom_hooks=send(signal.SIGTERM))
    run_toy(tmp_path / 'parts', resume='stopped.pth', **settings)
    run_toy(tmp_path / 'whole', **settings)
    assert logged(tmp_path / 'whole') == logged(tmp_path / 'parts')
    assert (tmp_path / 'parts/epoch_2.pth').is_file()


def test_gradient_accumulation_is_finished_first(tmp_path):
    wrapper = dict(optimizer=dict(type='AdamW', lr=0.01), accumulative_counts=3)
    with pytest.raises(TrainingStopped, match='after iteration 6'):
        run_toy(tmp_path, default_hooks=PLAIN, custom_hooks=send(signal.SIGTERM), optim_wrapper=wrapper,
                train_cfg=dict(by_epoch=False, max_iters=10))


def test_an_iteration_is_saved_once(tmp_path, monkeypatch):
    saved, save = [], torch.save
    monkeypatch.setattr(torch, 'save', lambda content, file: (saved.append(content['meta']['iter']), save(
        content, file)))
    with pytest.raises(TrainingStopped, match=r'iter_4\.pth'):
        run_toy(tmp_path, custom_hooks=send(signal.SIGTERM))
    assert saved == [2, 4]


def test_validation_is_left_without_a_checkpoint(tmp_path):
    stop = dict(type='InterruptHook', action=lambda: os.kill(os.getpid(), signal.SIGUSR1), val=True)
    with pytest.raises(TrainingStopped, match=r'in the validation after iteration 5; the last checkpoint is .*iter_4'):
        run_toy(tmp_path, custom_hooks=[stop])
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_2.pth', 'iter_4.pth']


def test_signals_are_given_back_at_the_end(tmp_path):
    before = [signal.getsignal(each) for each in signals.SIGNALS]
    run_toy(tmp_path)
    assert [signal.getsignal(each) for each in signals.SIGNALS] == before


def test_hook_needs_its_saver(tmp_path):
    with pytest.raises(ValueError, match=r"StopOnSignalHook needs .*type='SafeCheckpointHook'"):
        run_toy(tmp_path, default_hooks=dict(checkpoint=None), custom_hooks=[dict(type='StopOnSignalHook')])


def test_children_ignore_what_is_not_their_parents(tmp_path):
    """As data loader workers when a scheduler signals the whole job."""
    signals._shield_children(True)
    try:
        child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))
        child.start()
    finally:
        signals._shield_children(False)
    stranger = os.fork()
    if not stranger:
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(child.pid, number)
        os._exit(0)
    os.waitpid(stranger, 0)
    child.join(0.5)
    assert child.is_alive()
    child.terminate()  # SIGTERM of the parent
    child.join(10)
    assert child.exitcode == 0


def test_the_tools_exit_status(capsys):
    def main():
        raise TrainingStopped('stopped by SIGTERM after iteration 4')

    assert launch.run_tool(main) == os.EX_TEMPFAIL == 75
    assert capsys.readouterr().err == 'stopped by SIGTERM after iteration 4\n'


def _train_with_a_worker(pids) -> None:
    """A training process, a worker of it, and an end without a chance to clean up."""
    signals._shield_children(True)
    worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,), daemon=True)
    worker.start()
    pids.send(worker.pid)
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_of_a_killed_training_end():
    receiver, sender = multiprocessing.Pipe(duplex=False)
    training = multiprocessing.get_context('fork').Process(target=_train_with_a_worker, args=(sender,))
    training.start()
    worker = receiver.recv()
    training.join()
    deadline = time.monotonic() + 20
    while _is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _is_running(worker)


def _is_running(pid: int) -> bool:
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False
