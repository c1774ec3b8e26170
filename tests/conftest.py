"""Fixtures for all tests."""
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import devices

DATA = Path(__file__).parent / 'data'

if not torch.cuda.is_available():
    os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')  # the tools take the CPU where torch is built for GPUs too


# Their tensors are made on the device of APT_TEST_DEVICE, but where a test is marked own_device.
ON_DEVICE = ('core', 'mm/models')


def pytest_configure() -> None:
    obstacle = devices.NAME and devices.obstacle(devices.NAME)
    if obstacle:
        raise pytest.UsageError(obstacle)


class _FailuresAtOnce:
    """Writes what has failed when it fails: on a GPU, whose time may end before the summary."""

    def __init__(self, reporter: pytest.TerminalReporter):
        self._reporter = reporter

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            why = getattr(getattr(report.longrepr, 'reprcrash', None), 'message', str(report.longrepr))
            self._reporter.write_line(f'\nFAILED {report.nodeid}: {why.splitlines()[0] if why else report.when}')


def pytest_sessionstart(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin('terminalreporter')
    if devices.NAME and reporter is not None:  # the workers of pytest-xdist have none
        session.config.pluginmanager.register(_FailuresAtOnce(reporter))


@contextmanager
def _default_device(node: pytest.Collector | pytest.Item) -> Iterator[None]:
    folder = node.path.parent.relative_to(Path(__file__).parent).as_posix() if node.path.suffix == '.py' else ''
    if not devices.NAME or folder not in ON_DEVICE or node.get_closest_marker('own_device'):
        yield
        return
    with devices.whole_float32(), torch.device(devices.NAME):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    with _default_device(collector):  # what a module of tests makes when it is imported
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with _default_device(item):
        return (yield)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """What a test sets stays in it: a launcher's RANK would make a process group of the next test."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope='session')
def reference() -> Callable[[str], dict]:
    """reference(name) -> the arrays of tests/data/NAME.npz as tensors, float16 as float32, and 'meta', a dict."""

    def load(name: str) -> dict:
        content = {}
        with np.load(DATA / f'{name}.npz') as arrays:
            for key in arrays.files:
                values = arrays[key]
                if key.endswith('meta'):
                    content[key] = json.loads(str(values))
                else:
                    values = values.astype(np.float32) if values.dtype == np.float16 else values
                    content[key] = torch.from_numpy(values).to(torch.get_default_device())
        return content

    return load
