"""The data of a training run from any position on: batches of indices that are skipped, samples that are seeded.

See apt_dense/mm/fault_tolerance/resume.py for what samplers must keep to.
"""
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader


def seed_generators(*key: int) -> None:
    """Seed torch's (all devices), numpy's and Python's global generators from up to four integers >= 0."""
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words)
    torch.manual_seed(int(words.view(np.uint64)[0]))


class ResumableBatchSampler:
    """Another batch sampler's batches from any position on, each index with its place in the training run.

    Yields lists of (iteration, place in the batch, index) for SeededDataset.

    Args:
        batch_sampler: yields lists of indices; see the module for what it must keep to.
        endless: begin a new epoch of it after each, for loops that count iterations.
    """

    def __init__(self, batch_sampler: Any, endless: bool):
        self.batch_sampler = batch_sampler
        self.endless = endless
        self.epoch_start = 0  # the iteration of the first batch
        self.skip = 0  # batches to leave out

    @property
    def batch_size(self) -> int:
        """Of the batch sampler inside; mmengine's FlexibleRunner asks for it."""
        return self.batch_sampler.batch_size

    @property
    def sampler(self) -> Any:
        """The sampler inside, to which mmengine's DistSamplerSeedHook gives the epoch."""
        return getattr(self.batch_sampler, 'sampler', self.batch_sampler)

    def set_epoch(self, epoch: int) -> None:
        """Tell the batch sampler or its sampler the epoch, where they take it."""
        for owner in (self.batch_sampler, self.sampler):
            if hasattr(owner, 'set_epoch'):
                owner.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for iteration, batch in islice(enumerate(self._batches(), self.epoch_start), self.skip, None):
            yield [(iteration, place, index) for place, index in enumerate(batch)]

    def _batches(self) -> Iterator[list[int]]:
        if len(self) == 0:
            raise ValueError('the training dataset is smaller than one batch: take a smaller batch_size, or drop_last='
                             'False')
        yield from self.batch_sampler
        epoch = 0
        while self.endless:
            epoch += 1
            self.set_epoch(epoch)
            yield from self.batch_sampler


class SeededDataset:
    """A dataset whose items depend on their place in the training run, not on what was loaded before.

    Items are taken by (iteration, place in the batch, index); a plain index is passed on without seeding.  Attributes
    are read from and set on the dataset inside, so hooks that change its pipeline work.
    """

    def __init__(self, dataset: Any, seed: int, rank: int):
        self.__dict__.update(_dataset=dataset, _key=(seed, rank))

    def __getitem__(self, item: Any) -> Any:
        if not isinstance(item, tuple):
            return self._dataset[item]
        iteration, place, index = item
        seed_generators(*self._key, iteration, place + 1)
        return self._dataset[index]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or '_dataset' not in self.__dict__:  # while it is unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._dataset, name, value)


def make_resumable(loader: DataLoader, seed: int, endless: bool) -> DataLoader:
    """The same data loader with a ResumableBatchSampler and a SeededDataset."""
    return DataLoader(
        SeededDataset(loader.dataset, seed, get_rank()),
        batch_sampler=ResumableBatchSampler(loader.batch_sampler, endless),
        num_workers=loader.num_workers, collate_fn=loader.collate_fn, pin_memory=loader.pin_memory,
        timeout=loader.timeout, worker_init_fn=loader.worker_init_fn, generator=loader.generator,
        multiprocessing_context=loader.multiprocessing_context, prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers, pin_memory_device=loader.pin_memory_device)
