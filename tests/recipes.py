"""Weights of the reference files that follow from a recipe: see tests/data/README.md."""
import zlib
from collections.abc import Sequence

import numpy as np
import torch


def drawn(key: str, shape: Sequence[int], scale: float, offset: float, seed: int) -> torch.Tensor:
    """The numbers of a stored run's recipe, float32."""
    state = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
    return torch.tensor((offset + scale * state.standard_normal(shape)).astype(np.float16).astype(np.float32))
