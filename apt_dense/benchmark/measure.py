"""Time, stages and peak memory of a case: dense and APT in turns in one process."""
import ctypes
import multiprocessing
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from apt_dense.benchmark.cases import Case
from apt_dense.core.vit import PackedViT

STAGES = ('score', 'layout', 'embed', 'blocks', 'expand', 'other', 'backward')  # expand: of older files
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
MMAP_THRESHOLD = 'MALLOC_MMAP_THRESHOLD_'
CLOCKS = {'wall': time.perf_counter, 'process': time.process_time}


class Marks:
    """Marks on one time line, a clock or, for a GPU, its stream of kernels; they end stages, which may be nested."""

    def __init__(self, device: torch.device | str, clock: str = 'wall'):
        self.on_gpu = torch.device(device).type == 'cuda'
        self._clock = CLOCKS[clock]
        self._stack = ['other']
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def mark(self) -> None:
        """End what has run since the last mark: it counts for the innermost stage."""
        if self.on_gpu:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = self._clock()
        self._marks.append((self._stack[-1], now))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What runs inside counts for this stage."""
        self.mark()
        self._stack.append(name)
        try:
            yield
        finally:
            self.mark()
            self._stack.pop()

    def hook(self, name: str, module: nn.Module) -> list[Any]:
        """Let a module's forward passes count for this stage; returns the handles that end it."""
        stages = []

        def begin(*_: object) -> None:
            stages.append(self.stage(name))
            stages[-1].__enter__()

        def end(*_: object) -> None:
            stages.pop().__exit__(None, None, None)

        # Also after the exception by which activation checkpointing ends what it recomputes.
        return [module.register_forward_pre_hook(begin), module.register_forward_hook(end, always_call=True)]

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage between the first mark and the last."""
        if self.on_gpu:
            torch.cuda.synchronize()
        totals: dict[str, float] = defaultdict(float)
        for (_, start), (name, end) in zip(self._marks, self._marks[1:], strict=False):
            totals[name] += start.elapsed_time(end) / 1000 if self.on_gpu else end - start
        return dict(totals)


def keep_freed_memory() -> None:
    """Let this process keep memory that it has freed, as torch does on a GPU; does nothing without glibc.

    By default glibc hands memory back and fetches it again, when it happens to: of one training step that took 21 s of
    work, 0 to 6 s went into that, whichever model it was of.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # no tensor in a mapping of its own, which would end with it
        mallopt(M_TRIM_THRESHOLD, -1)  # and the heap never shrinks


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Inside, ``torch.use_deterministic_algorithms(enabled)``."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def run_once(case: Case, model: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, marks: Marks) -> None:
    """A forward pass, or a forward and a backward pass, between a first and a last mark."""
    marks.mark()
    if case.mode == 'forward':
        with torch.inference_mode():
            model(x)
    else:
        with case.autocast():
            outputs = model(x)
        with marks.stage('backward'):
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    marks.mark()


def seconds_of_pass(case: Case, model: nn.Module, x: Tensor) -> float:
    """Seconds of one pass, by nothing that could slow it down."""
    marks = Marks(case.device, case.clock)
    model.zero_grad()
    run_once(case, model, x, marks)
    return sum(marks.seconds().values())


def seconds_of_stages(case: Case, model: PackedViT, x: Tensor) -> dict[str, float]:
    """Seconds of each stage of one pass: score, layout, embed, blocks, backward, and other, the rest.

    What activation checkpointing recomputes counts for its own stage, not for backward.
    """
    marks = Marks(case.device, case.clock)
    model.zero_grad()

    def forward(x: Tensor) -> tuple[Tensor, ...]:
        if model.num_scales == 1:
            with marks.stage('layout'):
                layout = model.chooser.layout(x)
        else:
            with marks.stage('score'):
                scores = model.chooser.scores(x)
            with marks.stage('layout'):
                layout = model.chooser.choose(scores)
        return model.forward_layout(x, layout)

    with ExitStack() as stack:
        for name, module in (('embed', model.patch_embed), *(('blocks', block) for block in model.blocks)):
            for handle in marks.hook(name, module):
                stack.callback(handle.remove)
        run_once(case, forward, x, marks)
    return marks.seconds()


def profile(case: Case, model: PackedViT, x: Tensor, num_rows: int = 25) -> str:
    """torch's table of the operators that take the most time themselves in one pass, after one that does not count."""
    seconds_of_pass(case, model, x)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if case.on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        seconds_of_pass(case, model, x)
    order = f'self_{"cuda" if case.on_gpu else "cpu"}_time_total'
    return profiler.key_averages().table(sort_by=order, row_limit=num_rows, max_name_column_width=60)


def interleave(functions: dict[str, Callable[[], dict[str, float]]], repeats: int,
               warmup: int = 1) -> dict[str, list[dict[str, float]]]:
    """Run the functions in turns, every other round in reverse order; return what each returned, warm-up left out."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in functions}
    for round_number in range(warmup + repeats):
        names = list(functions)[::-1 if round_number % 2 else 1]
        for name in names:
            result = functions[name]()
            if round_number >= warmup:
                results[name].append(result)
    return results


def summary(times: list[float]) -> dict[str, object]:
    """Median and spread of some seconds."""
    return dict(median=statistics.median(times), min=min(times), max=max(times), times=times)


def median_stages(samples: list[dict[str, float]]) -> dict[str, float]:
    """The median seconds of each stage."""
    names = [name for name in STAGES if any(name in sample for sample in samples)]
    return {name: statistics.median(sample.get(name, 0.0) for sample in samples) for name in names}


def peak_memory(case: Case, kind: str) -> dict[str, float]:
    """Peak memory of one pass, see ``peak_of``: 'extra' is over weights, their gradients and the input.

    Args:
        kind: 'dense', 'apt', or 'score', the scoring and layout of the APT model alone.
    """
    return peak_of(partial(_prepare, case, kind), case.device)


def _prepare(case: Case, kind: str) -> Callable[[], object]:
    """Build the model and the input; return what is to be measured."""
    model, x = case.build_model(dense=kind == 'dense'), case.build_input()
    if case.mode == 'train':
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.0)

    def run() -> None:
        if kind == 'score':
            model.make_layout(x)
            return
        with deterministic_algorithms(case.deterministic):
            run_once(case, model, x, Marks(case.device))
    if case.compiled:
        run()  # the compiler's own memory is not the model's
    return run


def peak_of(prepare: Callable[[], Callable[[], object]], device: torch.device | str) -> dict[str, float]:
    """Peak memory in MiB of what ``prepare()`` returns: 'total', and 'extra', over what was there before the call.

    On a GPU that of torch's allocator.  On a CPU the resident memory of a new process (Linux), which calls ``prepare``,
    so that must be picklable.
    """
    if torch.device(device).type == 'cuda':
        return _peak_on_gpu(prepare)
    # A fixed threshold makes glibc return every freed tensor at once, so the peak is what was alive, not what was kept.
    before = os.environ.get(MMAP_THRESHOLD)
    os.environ[MMAP_THRESHOLD] = '65536'  # glibc reads it when the process starts
    try:
        with multiprocessing.get_context('spawn').Pool(1) as pool:
            return pool.apply(_peak_on_cpu, (prepare, torch.get_num_threads()))
    finally:
        os.environ.pop(MMAP_THRESHOLD)
        if before is not None:
            os.environ[MMAP_THRESHOLD] = before


def _peak_on_gpu(prepare: Callable[[], Callable[[], object]]) -> dict[str, float]:
    run = prepare()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    return dict(total=peak / 2**20, extra=(peak - before) / 2**20)


def _peak_on_cpu(prepare: Callable[[], Callable[[], object]], num_threads: int) -> dict[str, float]:
    torch.set_num_threads(num_threads)
    run = prepare()
    # Start the high-water mark anew.  (getrusage's would count what the parent process held, too.)
    clear_refs = Path('/proc/self/clear_refs')
    if not clear_refs.exists():
        raise ValueError('peak memory on a CPU is measured on Linux only: leave it out with --no-memory')
    clear_refs.write_text('5')
    before = _memory_kib('VmRSS')
    run()
    peak = _memory_kib('VmHWM')
    return dict(total=peak / 1024, extra=(peak - before) / 1024)


def _memory_kib(name: str) -> int:
    """An entry of this process's status in KiB: VmRSS, resident now; VmHWM, resident at its peak."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])
