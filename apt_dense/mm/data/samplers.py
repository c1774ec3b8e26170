"""Batches in which all ranks have nearly the same number of tokens, so that none waits for a busy image of another."""
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.registry import DATA_SAMPLERS

from apt_dense.calibration.token_counts import load_token_counts, read_token_counts
from apt_dense.mm.data.inputs import input_settings
from apt_dense.mm.errors import DataError


def balanced_steps(tokens: np.ndarray, num_ranks: int, batch_size: int, pool_steps: int,
                   seed: int) -> Iterator[np.ndarray]:
    """Endless steps of training; every image once an epoch, in an order of its own in each.

    The images of ``pool_steps`` steps at a time, in random order, are put into batches of nearly equal sums: in
    ``batch_size`` rounds from the busiest images to the calmest, each batch takes one, the fullest batch the calmest.
    Batches with the most similar sums make a step.  The steps of a pool, and the ranks in a step, are then shuffled.
    With a batch_size of 1, a step is made of similar images; else, of the images of a pool, busy ones meet calm ones.

    An epoch that is no whole number of pools is continued by the next one: a pool may hold an image twice.

    Args:
        tokens: (N,), each image's expected number.
        num_ranks, batch_size: of the training.
        pool_steps: the larger, the better the balance, and the less random the batches.
        seed: the same numbers give the same steps.

    Yields:
        (num_ranks, batch_size) indices of images.

    Raises:
        DataError: if there are no images.
    """
    if not len(tokens):
        raise DataError('the dataset has no image to train with')
    size, order = num_ranks * batch_size * pool_steps, np.empty(0, dtype=np.int64)
    for pool in count():
        rng = np.random.default_rng((seed, pool))
        while len(order) < size:
            order = np.concatenate([order, rng.permutation(len(tokens))])
        images, order = order[:size], order[size:]
        for step in rng.permutation(_balance(images, tokens, num_ranks, batch_size)):
            yield rng.permutation(step)


def _balance(images: np.ndarray, tokens: np.ndarray, num_ranks: int, batch_size: int) -> np.ndarray:
    """A pool's images -> (steps, num_ranks, batch_size), steps in ascending order of their sums."""
    rounds = images[np.argsort(-tokens[images], kind='stable')].reshape(batch_size, -1)
    batches = np.empty_like(rounds)
    sums = np.zeros(rounds.shape[1])
    for number, candidates in enumerate(rounds):
        batches[number, np.argsort(sums, kind='stable')] = candidates
        sums += tokens[batches[number]]
    return batches[:, np.argsort(sums, kind='stable')].T.reshape(-1, num_ranks, batch_size)


@DATA_SAMPLERS.register_module()
class TokenBalancedBatchSampler:
    """Batch sampler for mmengine's data loaders that gives the ranks of a step nearly equal numbers of tokens.

    ::

        train_dataloader = dict(batch_sampler=dict(type='TokenBalancedBatchSampler', token_counts='tokens.json'))

    See ``balanced_steps``.  It is endless, for IterBasedTrainLoop, and starts at the first step whenever it is
    iterated: to resume, leave out the batches that were trained, which costs microseconds each.  The numbers are
    expected ones: random resizing and cropping change an image's number from one epoch to the next.

    Args:
        sampler: mmengine's InfiniteSampler, whose dataset, seed and ranks are used and whose order is not.
        batch_size: images of a rank; from the data loader.
        token_counts: file of ``tools/analysis_tools/calibrate_thresholds.py --save-tokens``, of the same dataset.
        pool_steps: see ``balanced_steps``.

    Raises:
        DataError: if the sampler is another or does not shuffle, an argument is below 1, or the file is of another
            dataset.  Whether its thresholds and pipeline are the model's is checked at the start of the training, by
            KeptTokensHook (``check_token_settings``).
    """

    def __init__(self, sampler: InfiniteSampler, batch_size: int, token_counts: str, pool_steps: int = 16):
        if not isinstance(sampler, InfiniteSampler) or not sampler.shuffle:
            raise DataError(f'got a {type(sampler).__name__}, wanted sampler=dict(type="InfiniteSampler", '
                            'shuffle=True): TokenBalancedBatchSampler is endless and shuffles')
        if batch_size < 1 or pool_steps < 1:
            raise DataError(f'batch_size={batch_size} and pool_steps={pool_steps} must be 1 or more')
        self.sampler = sampler
        self.batch_size = batch_size
        self.pool_steps = pool_steps
        self.path = Path(token_counts)
        self.tokens = _tokens_of(sampler.dataset, self.path)

    def __iter__(self) -> Iterator[list[int]]:
        steps = balanced_steps(self.tokens, self.sampler.world_size, self.batch_size, self.pool_steps,
                               self.sampler.seed)
        for step in steps:
            yield step[self.sampler.rank].tolist()

    def __len__(self) -> int:
        """Whole steps of an epoch."""
        return len(self.tokens) // (self.sampler.world_size * self.batch_size)


def _load(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """A file's settings and tokens; raises DataError if it is missing or no such file."""
    try:
        return load_token_counts(path)
    except ValueError as error:
        raise DataError(str(error)) from error


def _tokens_of(dataset: Any, path: Path) -> np.ndarray:
    """(N,) expected tokens of a dataset's images, in its order."""
    _, tokens = _load(path)
    paths = [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]
    for what, names in (('lacks images of the dataset', set(paths) - tokens.keys()),
                        ('holds images that the dataset has not', tokens.keys() - set(paths))):
        if names:
            raise DataError(f'{path} {what}: {len(names)} of {len(set(paths))}, such as {min(names)}. Make it again '
                            'with tools/analysis_tools/calibrate_thresholds.py --save-tokens')
    return np.array([tokens[name] for name in paths], dtype=np.float64)


def check_token_settings(path: Path, cfg: Config) -> None:
    """Check that token counts were made with a config's thresholds, scorer, dataset and one of its pipelines.

    Raises:
        DataError: if not, naming what differs.
    """
    found, _ = _load(path)
    pipeline = 'train' if found.get('training') else 'test' if cfg.get('test_dataloader') else 'val'
    settings = input_settings(cfg, 'train', pipeline, seed=found.get('seed'))
    try:
        read_token_counts(path, {**settings, 'thresholds': cfg.model.backbone.thresholds})
    except ValueError as error:
        raise DataError(str(error)) from error
