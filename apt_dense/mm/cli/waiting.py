"""Processes that wait for each other say so."""
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SILENT_SECONDS = 30  # of waiting


@contextmanager
def said_while_waiting() -> Iterator[None]:
    """Say after a while for whom this process waits, which torch does in silence for half an hour."""
    def say() -> None:
        print(f'{others()}: still waiting for all of them. Have all been started, with the same address and '
              'WORLD_SIZE, and can they reach it?', file=sys.stderr, flush=True)

    timer = threading.Timer(SILENT_SECONDS, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def others() -> str:
    """The processes of a run, and where they meet, for a message."""
    place, names = os.environ, ('WORLD_SIZE', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')
    size = next((place[name] for name in names if name in place), '?')
    return f'the {size} processes at {place.get("MASTER_ADDR", "this machine")}:{place.get("MASTER_PORT", "29500")}'
