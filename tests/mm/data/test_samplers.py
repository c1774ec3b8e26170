"""Batches of balanced token counts: what is in them, in which order, and which caches are refused."""
import runpy
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.dataset import DefaultSampler, InfiniteSampler

import apt_dense.mm.det  # noqa: F401
from apt_dense.calibration.token_counts import write_token_counts
from apt_dense.mm.data.inputs import input_settings
from apt_dense.mm.data.samplers import TokenBalancedBatchSampler, balanced_steps
from apt_dense.mm.errors import DataError
from tests.locations import TOOLS
from tests.mm.conftest import point_to
from tests.mm.training.test_training import losses_of, run


def idle_share(steps: list[np.ndarray], tokens: np.ndarray) -> float:
    sums = np.array([tokens[step].sum(1) for step in steps])
    return (1 - sums.mean(1) / sums.max(1)).mean()


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(100, 1000, 240).astype(float)


@pytest.mark.parametrize(('num_ranks', 'batch_size', 'pool_steps'), [(4, 1, 5), (2, 3, 10), (8, 2, 3), (1, 4, 60)])
def test_every_image_once_an_epoch(tokens, num_ranks, batch_size, pool_steps):
    """In whole pools each epoch is a permutation, another one each time."""
    steps = len(tokens) // (num_ranks * batch_size)
    stream = balanced_steps(tokens, num_ranks, batch_size, pool_steps, seed=7)
    epochs = [list(islice(stream, steps)) for _ in range(3)]
    for epoch in epochs:
        assert all(step.shape == (num_ranks, batch_size) for step in epoch)
        assert np.sort(np.ravel(epoch)).tolist() == list(range(len(tokens)))
    assert not any(np.array_equal(epochs[0], other) for other in epochs[1:])


def test_an_epoch_that_is_no_whole_number_of_steps(tokens):
    """Over many epochs each image is seen equally often, but for the pools under way."""
    steps = list(islice(balanced_steps(tokens[:50], 4, 3, 5, seed=1), 500))
    seen = np.bincount(np.ravel(steps), minlength=50)
    assert seen.sum() == 6000 and seen.min() >= 119 and seen.max() <= 121


def test_worked_numbers():
    """Two batches of two: 9 with 1 and 6 with 5, not 9 with 6."""
    step, = islice(balanced_steps(np.array([1.0, 9, 5, 6]), 2, 2, 1, seed=0), 1)
    assert {frozenset(batch) for batch in step.tolist()} == {frozenset((0, 1)), frozenset((2, 3))}


@pytest.mark.parametrize(('num_ranks', 'batch_size', 'at_most'), [(2, 1, 0.05), (8, 1, 0.08), (2, 2, 0.01),
                                                                  (8, 2, 0.01), (60, 2, 0.2)])
def test_ranks_are_balanced(tokens, num_ranks, batch_size, at_most):
    stream = balanced_steps(tokens, num_ranks, batch_size, 16, seed=3)
    steps = list(islice(stream, 100))
    rng = np.random.default_rng(0)
    plain = [rng.choice(len(tokens), (num_ranks, batch_size), replace=False) for _ in range(100)]
    assert idle_share(steps, tokens) < at_most < idle_share(plain, tokens)


def test_steps_and_ranks_are_in_random_order(tokens):
    """Sorted steps would start each pool with calm images, and give one rank the busiest ones."""
    steps = np.array(list(islice(balanced_steps(tokens, 4, 1, 15, seed=0), 600)))
    sums = tokens[steps].sum((1, 2))
    assert abs(np.corrcoef(np.arange(600) % 15, sums)[0, 1]) < 0.15
    assert np.ptp(tokens[steps].mean((0, 2))) < 5


class Dataset:

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def get_data_info(self, index: int) -> dict:
        return dict(img_path=f'{index}.jpg')


def build(path, rank=0, world_size=2, size=24, batch_size=2, seed=5, **options) -> TokenBalancedBatchSampler:
    sampler = InfiniteSampler(Dataset(size), seed=seed)
    sampler.rank, sampler.world_size = rank, world_size
    return TokenBalancedBatchSampler(sampler, batch_size, str(path), **options)


@pytest.fixture
def counts(tmp_path):
    path = tmp_path / 'tokens.json'
    write_token_counts(path, dict(thresholds=(2, 1)), {f'{index}.jpg': 10 + index for index in range(24)})
    return path


def test_ranks_share_the_steps(counts):
    first, second = (list(islice(build(counts, rank, pool_steps=3), 6)) for rank in range(2))
    wanted = list(islice(balanced_steps(np.arange(10, 34.0), 2, 2, 3, seed=5), 6))
    assert [list(step) for step in zip(first, second, strict=True)] == [step.tolist() for step in wanted]
    assert np.sort(np.ravel(first + second)).tolist() == list(range(24))
    assert len(build(counts)) == 6 and len(build(counts, batch_size=5)) == 2


def test_the_same_seed_starts_again(counts):
    """A resumed run skips what it has trained; iterating twice must not go on."""
    sampler = build(counts)
    once = list(islice(sampler, 20))
    assert list(islice(sampler, 20)) == once == list(islice(build(counts), 20))
    assert list(islice(sampler, 15, 20)) == once[15:]
    assert list(islice(build(counts, seed=6), 20)) != once


def test_other_datasets_are_refused(counts):
    with pytest.raises(ValueError, match=r'tokens\.json lacks images of the dataset: 1 of 25, such as 24\.jpg\. Make'):
        build(counts, size=25)
    with pytest.raises(ValueError, match=r'holds images that the dataset has not: 2 of 22, such as 22\.jpg'):
        build(counts, size=22)


def test_wrong_files(tmp_path):
    with pytest.raises(ValueError, match=r'none\.json does not exist: make it with .*calibrate_thresholds\.py'):
        build(tmp_path / 'none.json')
    for content in ('{"tokens": {}}', 'no json', '[1]'):
        (tmp_path / 'bad.json').write_text(content)
        with pytest.raises(ValueError, match=r'bad\.json is no cache of token counts: make it with'):
            build(tmp_path / 'bad.json')


def test_wrong_arguments(counts):
    for options in (dict(batch_size=0), dict(pool_steps=0)):
        with pytest.raises(ValueError, match='must be 1 or more'):
            build(counts, **options)
    with pytest.raises(ValueError, match='no image'):
        next(balanced_steps(np.empty(0), 2, 2, 2, seed=0))
    for sampler in (DefaultSampler(Dataset(24)), InfiniteSampler(Dataset(24), shuffle=False)):
        with pytest.raises(ValueError, match='wanted sampler=.*InfiniteSampler'):
            TokenBalancedBatchSampler(sampler, 2, str(counts))


@pytest.fixture
def balanced_config(tiny_config, coco_root, tmp_path):
    """A detector's config, and the settings and counts that the calibration tool would write for it."""
    cfg = point_to(tiny_config(), coco_root, tmp_path / 'work', max_iters=2)
    tokens = {f'{coco_root}/train/{index}.jpg': 30 + index for index in range(6)}
    settings = {**input_settings(cfg, 'train', 'test'), 'thresholds': cfg.model.backbone.thresholds}
    cfg.train_dataloader.batch_sampler = dict(
        type='TokenBalancedBatchSampler', token_counts=str(tmp_path / 'tokens.json'))
    return SimpleNamespace(cfg=cfg, tokens=tokens, settings=settings, path=tmp_path / 'tokens.json')


def test_training_with_balanced_batches(balanced_config, tmp_path):
    """With the counts that the calibration tool writes for the same config."""
    cfg = balanced_config.cfg
    cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    cfg.dump(tmp_path / 'config.py')
    script = TOOLS / 'analysis_tools/calibrate_thresholds.py'
    assert runpy.run_path(str(script))['main']([
        '--config', str(tmp_path / 'config.py'), '--split', 'train', '--pipeline', 'test', '--thresholds', '3', '3',
        '--save-tokens', str(balanced_config.path), '--out-dir', str(tmp_path), '--num-workers', '0']) == 0
    runner = run(cfg)
    sampler = runner.train_dataloader.batch_sampler
    assert isinstance(sampler, TokenBalancedBatchSampler) and sampler.batch_size == 2
    assert len(sampler.tokens) == 6 and len(set(sampler.tokens)) > 1
    assert all(4 <= tokens < 64 for tokens in sampler.tokens)
    assert len(losses_of(tmp_path / 'work')) == 2


@pytest.mark.parametrize(('stale', 'message'), [
    (dict(thresholds=(2.0, 1.0)), r'thresholds was \[2\.0, 1\.0\], is \[3\.0, 3\.0\]'),
    (dict(scorer='laplacian_mean'), 'scorer was laplacian_mean, is entropy'),
    (dict(training=True), 'pipeline was ')])
def test_counts_of_other_settings_are_refused(balanced_config, stale, message):
    write_token_counts(balanced_config.path, {**balanced_config.settings, **stale}, balanced_config.tokens)
    with pytest.raises(DataError, match=rf'tokens\.json was made with other settings: .*{message}'):
        run(balanced_config.cfg)
