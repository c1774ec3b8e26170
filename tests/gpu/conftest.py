"""What only a GPU shows.  APT_TEST_DEVICE=cpu pytest tests/gpu rehearses it: the same code, with what a CPU has."""
import os

import pytest
import torch

from tests import devices

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # what deterministic matrix products want


@pytest.fixture(scope='session')
def device() -> str:
    """The GPU, or what APT_TEST_DEVICE names."""
    if not devices.NAME and not torch.cuda.is_available():
        pytest.skip('needs a GPU; APT_TEST_DEVICE=cpu rehearses it on a CPU')
    return devices.NAME or 'cuda'
