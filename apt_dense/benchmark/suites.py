"""Sets of cases that answer one question each.  All run on a GPU as well; --depth makes them short on a CPU."""
from collections.abc import Callable, Iterator

from apt_dense.benchmark.cases import MODES, Case

# The paper's images per second: dense, APT; one RTX A6000, batch 1, the whole detector or segmentor.
PAPER = {('B', 'det', 1536): (3.86, 4.41), ('L', 'det', 1536): (1.62, 2.17),
         ('L', 'seg', 512): (4.40, 4.87), ('L', 'seg', 640): (2.55, 2.83)}
PAPER_KEPT = 0.7  # of the tokens
OVERHEAD = [('B', 'det', 1536), ('L', 'det', 1536), ('L', 'seg', 512)]

Suite = Iterator[tuple[str, Case]]


def _row(model: str, geometry: str, img_size: int, kept: float = PAPER_KEPT, **options) -> Case:
    return Case(model, geometry, img_size, kept=(kept,), **options)


def paper() -> Suite:
    """The rows of the paper's tables at 0.7 of the tokens."""
    for row in PAPER:
        yield 'paper', _row(*row)


def overhead() -> Suite:
    """APT that reduces nothing, forward and train."""
    for row in OVERHEAD:
        for mode in MODES:
            yield mode, _row(*row, kept=1.0, mode=mode)


def kept() -> Suite:
    """Measured against ideal at four kept-token fractions, forward and train."""
    for mode in MODES:
        for fraction in (0.9, 0.7, 0.5, 0.3):
            yield mode, _row('B', 'det', 1536, fraction, mode=mode)


def memory() -> Suite:
    """Training steps at 0.7 of the tokens, with and without activation checkpointing."""
    for with_cp in (False, True):
        yield 'with checkpointing' if with_cp else 'plain', _row('B', 'det', 1536, mode='train', with_cp=with_cp)


def growth() -> Suite:
    """Time against pixels, batch and kept fraction."""
    for img_size in (512, 1024, 1536, 2048):
        yield 'pixels', _row('Ti', 'det', img_size, 0.5)
    for batch in (1, 2, 4, 8):
        yield 'batch', Case('Ti', 'det', 512, kept=(0.5,) * batch)
    for fraction in (0.2, 0.4, 0.6, 0.8, 1.0):
        yield 'kept', _row('Ti', 'det', 1024, fraction)


def unequal() -> Suite:
    """Batches of equal and of very unequal images with the same sum of tokens, and one of the largest image only."""
    for fractions in ((0.4,) * 4, (0.1, 0.2, 0.4, 0.9), (0.9,) * 4):
        for mode in MODES:
            yield mode, Case('Ti', 'seg', 512, kept=fractions, mode=mode)


def gpu() -> Suite:
    """What to run on a GPU: B and L at 1536, L at 512 and 640, bfloat16, batch 1 to 8, forward and train."""
    for row in PAPER:
        for mode in MODES:
            for batch in (1, 2, 4, 8):
                for fraction in (1.0, 0.7):
                    yield mode, Case(*row, kept=(fraction,) * batch, mode=mode, dtype='bfloat16', device='cuda')


def gpu_short() -> Suite:
    """What says most in three minutes of a GPU: L, bfloat16, with torch.compile and CUDA graphs in turn."""
    def rows(mode: str, img_size: int, batch: int, *kept: float, **options) -> Suite:
        for fraction in kept or (PAPER_KEPT,):
            yield mode, Case('L', 'det' if img_size == 1536 else 'seg', img_size, kept=(fraction,) * batch, mode=mode,
                             dtype='bfloat16', device='cuda', **options)

    yield from rows('forward', 1536, 1)
    yield from rows('forward', 1536, 8, 1.0, PAPER_KEPT)
    yield from rows('train', 1536, 1)
    yield from rows('train', 1536, 2, PAPER_KEPT, 0.5)
    for mode in MODES:
        yield from rows(mode, 512, 1)
        yield from rows(mode, 512, 8)
    for img_size in (1536, 512):
        yield from rows('forward', img_size, 1, graph_tokens=256)
        yield from rows('forward', img_size, 1, compiled=True)
    yield from rows('train', 1536, 2, compiled=True)


SUITES: dict[str, Callable[[], Suite]] = {
    function.__name__: function for function in (paper, overhead, kept, memory, growth, unequal, gpu, gpu_short)
}
