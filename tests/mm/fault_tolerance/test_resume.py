"""An interrupted run ends like an uninterrupted one, bit for bit, and loads no data twice."""
import logging
import os
import pickle
import random
import signal
import time
from itertools import islice

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler

from apt_dense.calibration.token_counts import write_token_counts
from apt_dense.mm.data.samplers import TokenBalancedBatchSampler  # noqa: F401  (registers it)
from apt_dense.mm.fault_tolerance import make_fault_tolerant
from apt_dense.mm.fault_tolerance.resumable_data import ResumableBatchSampler, SeededDataset, seed_generators
from apt_dense.mm.fault_tolerance.run_comparison import differing, load, logged
from apt_dense.mm.fault_tolerance.signals import EXIT_STOPPED
from tests.mm import processes
from tests.mm.conftest import point_to
from tests.mm.toys import (
    LOADED,
    METRIC_VALUES,
    Interrupted,
    ToyDataset,
    interrupt,
    run_toy,
    toy_config,
)


def loader(sampler, num_workers=0):
    return dict(dataset=dict(type='ToyDataset'), batch_size=2, num_workers=num_workers,
                sampler=dict(type=sampler, shuffle=True))


EPOCHS = dict(by_epoch=True, max_epochs=2, val_interval=1)
SETTINGS = {  # (settings, the last checkpoint before iteration 8 begins, the last of all)
    'endless sampler': ({}, 'iter_6.pth', 'iter_10.pth'),
    'sampler of epochs': (dict(train_dataloader=loader('DefaultSampler')), 'iter_6.pth', 'iter_10.pth'),
    'batch sampler': (dict(train_dataloader=dict(loader('DefaultSampler'), batch_sampler=dict(
        type='BatchSampler', drop_last=True))), 'iter_6.pth', 'iter_10.pth'),
    'within an epoch': (dict(train_cfg=EPOCHS, train_dataloader=loader('DefaultSampler')),
                        'iter_6.pth', 'iter_10.pth'),
    'by epochs': (dict(train_cfg=EPOCHS, train_dataloader=loader('DefaultSampler'), default_hooks=dict(
        logger=dict(type='LoggerHook', interval=1),
        checkpoint=dict(type='CheckpointHook', interval=1))), 'epoch_1.pth', 'epoch_2.pth'),
}


@pytest.mark.parametrize('name', SETTINGS)
def test_interrupted_run_equals_the_uninterrupted(name, tmp_path):
    settings, middle, last = SETTINGS[name]
    settings = dict(settings, custom_hooks=[dict(type='EMAHook')])
    run_toy(tmp_path / 'whole', **settings)
    order = LOADED.copy()
    with pytest.raises(Interrupted):
        run_toy(tmp_path / 'parts', **dict(settings, custom_hooks=[
            *settings['custom_hooks'], dict(type='InterruptHook', action=interrupt, train_iter=7)]))
    assert order[:len(LOADED)] == LOADED
    run_toy(tmp_path / 'parts', resume=middle, **settings)
    assert not differing(load(tmp_path / 'whole' / last), load(tmp_path / 'parts' / last))
    assert logged(tmp_path / 'whole') == logged(tmp_path / 'parts')
    assert len(logged(tmp_path / 'whole')) == 10
    trained = 2 * (5 if middle == 'epoch_1.pth' else 6)
    assert order[trained:] == LOADED  # nothing of what was skipped


def test_order_is_the_samplers(tmp_path):
    run_toy(tmp_path)
    assert list(islice(InfiniteSampler(ToyDataset(), seed=3), 20)) == LOADED


def test_number_of_workers_does_not_matter(tmp_path):
    for count in (0, 2):
        run_toy(tmp_path / str(count), train_dataloader=loader('InfiniteSampler', count))
    assert logged(tmp_path / '0') == logged(tmp_path / '2')
    losses = [entry['loss'] for entry in logged(tmp_path / '0').values()]
    assert len(set(losses)) == 10


def test_a_seed_changes_the_run(tmp_path):
    for seed in (3, 4):
        run_toy(tmp_path / str(seed), randomness=dict(seed=seed))
    assert logged(tmp_path / '3') != logged(tmp_path / '4')


def test_mmengines_own_loop_differs(tmp_path):
    """What the project's loop is for; the config can keep mmengine's."""
    settings = dict(exact_resume=False)
    run_toy(tmp_path / 'whole', **settings)
    run_toy(tmp_path / 'whole', resume='iter_8.pth', **settings)
    # All of it again; onedl-mmengine passes over it in the sampler, without the random numbers that loading draws.
    assert len(LOADED) == (4 if hasattr(InfiniteSampler, 'skip') else 20)
    with pytest.raises(ValueError, match='logs iteration (9|10) as'):
        logged(tmp_path / 'whole')


@pytest.mark.parametrize('settings', [{}, dict(train_cfg=EPOCHS, train_dataloader=loader('DefaultSampler'))])
def test_interrupted_validation_is_made_up_for(settings, tmp_path):
    """The checkpoint of an iteration is written before the validation that follows it."""
    settings = dict(settings, default_hooks=dict(checkpoint=dict(
        type='CheckpointHook', interval=1, by_epoch='train_cfg' in settings, save_best='mAP')))
    with pytest.raises(Interrupted):
        run_toy(tmp_path, **settings, custom_hooks=[dict(type='InterruptHook', action=interrupt, val=True)])
    METRIC_VALUES[:] = [0.5, 0.25]
    run_toy(tmp_path, **settings, resume='epoch_1.pth' if 'train_cfg' in settings else 'iter_5.pth')
    assert not METRIC_VALUES
    assert [path.name for path in tmp_path.glob('best_*')] == [
        'best_mAP_epoch_1.pth' if 'train_cfg' in settings else 'best_mAP_iter_5.pth']


def test_early_stopping_counts_on(tmp_path):
    settings = dict(custom_hooks=[dict(type='EarlyStoppingHook', monitor='mAP', patience=3, min_delta=0.1)],
                    train_cfg=dict(by_epoch=False, max_iters=10, val_interval=2))
    METRIC_VALUES[:] = [0.5, 0.4, 0.3]
    with pytest.raises(Interrupted):
        run_toy(tmp_path, **dict(settings, custom_hooks=[
            *settings['custom_hooks'], dict(type='InterruptHook', action=interrupt, train_iter=6)]))
    assert load(tmp_path / 'iter_6.pth')['resume']['early_stopping'] == {'mAP': dict(wait_count=1, best_score=0.5)}
    METRIC_VALUES[:] = [0.3, 0.2, 0.1]
    assert run_toy(tmp_path, resume='iter_6.pth', **settings).iter == 8
    METRIC_VALUES.clear()


@pytest.fixture
def warnings_logged(monkeypatch):
    """The messages that are logged as warnings."""
    messages = []
    monkeypatch.setattr('mmengine.logging.MMLogger.callHandlers', lambda self, record: messages.append(
        record.getMessage()) if record.levelno == logging.WARNING else None)
    return messages


def test_another_batch_size_is_noticed(tmp_path, warnings_logged):
    run_toy(tmp_path)
    assert not [message for message in warnings_logged if 'order' in message]
    run_toy(tmp_path, resume='iter_8.pth', train_dataloader=dict(loader('InfiniteSampler'), batch_size=5))
    assert [message for message in warnings_logged if 'another order' in message] == [
        'batches_per_epoch was 5 in the checkpoint and is 2: the images come in another order than without the '
        'interruption']


def test_another_seed_is_noticed(tmp_path, warnings_logged):
    run_toy(tmp_path)
    run_toy(tmp_path, resume='iter_8.pth', randomness=dict(seed=4))
    assert [message for message in warnings_logged if message.startswith(
        'the data is drawn with seed 4, and the checkpoint was trained with 3: set randomness=dict(seed=3)')]


def test_checkpoints_within_an_accumulation_are_noticed(tmp_path, warnings_logged):
    for steps, noticed in ((2, False), (3, True)):
        run_toy(tmp_path / str(steps), optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=0.01), accumulative_counts=steps))
        assert any(f'{steps} iterations apart' in message for message in warnings_logged) == noticed


def test_dataset_smaller_than_a_batch(tmp_path):
    settings = dict(loader('DefaultSampler'), batch_size=20, drop_last=True)
    with pytest.raises(ValueError, match='smaller than one batch'):
        run_toy(tmp_path, train_dataloader=settings)


@pytest.mark.parametrize('balanced', [False, True])
def test_an_endless_sampler_has_no_epochs(balanced, tmp_path):
    settings = loader('InfiniteSampler')
    if balanced:
        dataset = ToyDataset()
        dataset.get_data_info = lambda index: dict(img_path=str(index))
        write_token_counts(tmp_path / 'tokens.json', {}, {str(index): 9.0 for index in range(len(dataset))})
        settings.update(dataset=dataset, batch_sampler=dict(
            type='TokenBalancedBatchSampler', token_counts=str(tmp_path / 'tokens.json')))
    name = 'TokenBalancedBatchSampler' if balanced else 'BatchSampler'
    with pytest.raises(ValueError, match=rf'\b{name} of an InfiniteSampler is endless.* train with IterBasedTrainLoop'):
        run_toy(tmp_path, train_cfg=EPOCHS, train_dataloader=settings)


def test_no_text_in_a_checkpoint_is_executed(tmp_path):
    """mmengine's runner takes meta['config'] for a config file, and those are Python."""
    run_toy(tmp_path)
    content = load(tmp_path / 'iter_8.pth')
    content['meta']['config'] = f'file = open({str(tmp_path / "marker")!r}, "w").close()\n'
    torch.save(content, tmp_path / 'iter_8.pth')
    assert run_toy(tmp_path, resume='iter_8.pth').iter == 10
    assert not (tmp_path / 'marker').exists()


class Recorded(list):
    """A batch sampler that notes the epochs it is given."""

    def __init__(self, *batches):
        super().__init__(batches)
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def test_batch_sampler():
    batches = ResumableBatchSampler(Recorded([7, 8], [9]), endless=False)
    assert list(batches) == [[(0, 0, 7), (0, 1, 8)], [(1, 0, 9)]]
    batches.epoch_start, batches.skip = 4, 1
    assert list(batches) == [[(5, 0, 9)]] and len(batches) == 2
    batches = ResumableBatchSampler(Recorded([7, 8], [9]), endless=True)
    batches.skip = 5
    assert next(iter(batches)) == [(5, 0, 9)]
    assert batches.batch_sampler.epochs == [1, 1, 2, 2]  # as batch sampler and, having none, as its own sampler
    assert batches.sampler is batches.batch_sampler


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_seeds_are_distinct_and_repeatable():
    seen = set()
    for key in ((3, 0, 0), (3, 0, 0, 1), (3, 0, 1), (3, 1, 0), (4, 0, 0), (2**40, 0, 0)):
        seed_generators(*key)
        first = draws()
        seed_generators(*key)
        assert draws() == first
        seen.update(first)
    assert len(seen) == 18


def test_dataset_is_the_one_inside():
    inner = ToyDataset()
    dataset = SeededDataset(inner, 3, 0)
    dataset.scale = 2.0  # as hooks that switch the pipeline do
    assert inner.scale == 2.0 and len(dataset) == 10 and dataset.metainfo is inner.metainfo
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[4, 1, 0]['inputs'], dataset[4, 1, 0]['inputs'])
    others = [SeededDataset(inner, 3, 1)[4, 1, 0], dataset[5, 1, 0], dataset[4, 0, 0]]
    assert not any(torch.equal(dataset[4, 1, 0]['inputs'], other['inputs']) for other in others)
    assert dataset[0]['inputs'].shape == (3,)


@pytest.mark.parametrize('kind', ['IterBasedTrainLoop', 'mmengine.EpochBasedTrainLoop', 'OwnLoop'])
def test_what_the_tool_adds_to_a_config(kind):
    cfg = Config(dict(train_cfg=dict(type=kind, max_iters=3), custom_hooks=[dict(type='EMAHook')]))
    for _ in range(2):  # a config that was written by a run has it all
        make_fault_tolerant(cfg)
        assert cfg.train_cfg == dict(type=kind if kind == 'OwnLoop' else f'Resumable{kind.split(".")[-1]}', max_iters=3)
        assert cfg.default_hooks.checkpoint.type == 'SafeCheckpointHook'
        assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook', 'ResumeStateHook', 'StopOnSignalHook']
    cfg = Config(dict(train_cfg=dict(by_epoch=True), default_hooks=dict(checkpoint=dict(type='OwnCheckpointHook'))))
    make_fault_tolerant(cfg)
    assert cfg.default_hooks.checkpoint.type == 'OwnCheckpointHook'
    assert [hook.type for hook in cfg.custom_hooks] == ['ResumeStateHook']
    assert toy_config('x', exact_resume=False).train_cfg.by_epoch is False


@pytest.mark.slow
def test_killed_and_stopped_detector_equals_the_uninterrupted(tiny_config, coco_root, tmp_path):
    """tools/train.py in processes of its own, with two workers: SIGKILL within a write, SIGTERM to the whole group."""
    cfg = point_to(tiny_config(), coco_root, tmp_path, max_iters=7)
    cfg.train_dataloader.update(num_workers=2, persistent_workers=True)
    cfg.val_dataloader.dataset.indices = 1
    cfg.train_cfg.val_interval = 3
    cfg.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=1, save_best='coco/bbox_mAP')
    cfg.custom_hooks += [dict(type='EMAHook', momentum=0.1)]
    cfg.dump(tmp_path / 'tiny.py')
    log, parts = tmp_path / 'parts.log', tmp_path / 'parts'

    def start(name, **options):
        return processes.train(tmp_path / f'{name}.log', [
            tmp_path / 'tiny.py', '--work-dir', tmp_path / name, '--resume'], **options)

    whole = start('whole')
    killed = start('parts', kill_in_write=4)  # after iteration 2, the best and once more after 3, now after 4
    killed.join()
    assert killed.exitcode == -signal.SIGKILL, log.read_text()[-2000:]
    assert {path.name for path in parts.glob('*.pth*')} == {
        'iter_3.pth', 'best_coco_bbox_mAP_iter_3.pth', 'iter_4.pth.partial'}
    stopped = start('parts')
    while log.read_text().count('Iter(train) [4/7]') < 2 and stopped.is_alive():
        time.sleep(0.01)
    os.killpg(stopped.pid, signal.SIGTERM)
    stopped.join()
    assert stopped.exitcode == EXIT_STOPPED, log.read_text()[-2000:]
    assert 'iter_4.pth.partial, which an interrupted run did not finish, is removed' in log.read_text()
    assert (parts / 'last_checkpoint').read_text()[-10:] in ('iter_4.pth', 'iter_5.pth')
    assert not list(parts.glob('*.partial'))
    rest = start('parts')
    rest.join()
    whole.join()
    assert (rest.exitcode, whole.exitcode) == (0, 0), log.read_text()[-2000:]
    assert not differing(*(load(tmp_path / name / 'iter_7.pth') for name in ('whole', 'parts')))
    assert logged(tmp_path / 'whole') == logged(parts)
    assert len(logged(parts)) == 7
    assert {path.name for path in parts.glob('*.pth*')} == {path.name for path in (tmp_path / 'whole').glob('*.pth*')}
