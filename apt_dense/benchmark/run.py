"""Run one case: what it measures, as plain data."""
import copy
import dataclasses
import datetime
import itertools
import platform
import shutil
import statistics
import subprocess
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apt_dense.benchmark.cases import Case
from apt_dense.benchmark.measure import (
    deterministic_algorithms,
    interleave,
    median_stages,
    peak_memory,
    seconds_of_pass,
    seconds_of_stages,
    summary,
)
from apt_dense.benchmark.suites import PAPER, PAPER_KEPT
from apt_dense.core.flops import dense_layout, multiply_adds
from apt_dense.core.reductions import build_reduction
from apt_dense.core.vit import PackedViT

Row = dict[str, Any]


def run_case(case: Case, repeats: int, warmup: int = 1, with_tome: bool = False, stages: bool = True,
             memory: bool = True, checkpoint: str | Path | None = None) -> Row:
    """Measure a case: the dense model, APT and, if wanted, token merging with APT's number of tokens, in turns.

    Args:
        case: the row.
        repeats, warmup: rounds that count, and those before them.
        with_tome: also token merging, and every method's distance to the dense features; forward passes only.
        stages: split the time by stages, in rounds of their own, a third as many.
        memory: peak memory, in processes of their own on a CPU.
        checkpoint: weights of the backbone, random if None.

    Returns:
        A row, for JSON: 'case'; 'title'; 'thresholds'; 'tokens' of each image, class tokens not counted, 'cells' of the
        batch, 'kept' (of new images: tokens of the first round's, the mean of the others over the rounds); for each
        method its 'seconds', 'multiply_adds', 'stages' and 'memory', and for APT and token merging 'speedup' (the
        median over the rounds, with its 'speedup_range') and 'ideal', of multiply-adds; 'distance'; and 'paper', where
        the paper has such a row.

    Raises:
        ValueError: for token merging in a training step, or at a fraction or a depth that it cannot reach; for a
            checkpoint or a photograph that does not fit or cannot be read; for a GPU that is not there.
        ImportError: if the package of an attention backend is not there.
    """
    if with_tome:
        check_tome(case)
    if case.on_gpu and not torch.cuda.is_available():
        raise ValueError(f'device={case.device!r}, but torch {torch.__version__} finds no GPU: use cpu')
    if case.compiled:
        torch.compiler.reset()  # there is a limit to what is compiled from one function
    on_device = torch.cuda.device(case.device) if case.on_gpu else nullcontext()
    with on_device, deterministic_algorithms(case.deterministic):
        row = _measure(case, repeats, warmup, with_tome, stages, memory, checkpoint)
    paper = PAPER.get((case.model, case.geometry, case.img_size))
    if paper and (case.mode, case.kept, case.depth) == ('forward', (PAPER_KEPT,), 0):
        row['paper'] = dict(dense=paper[0], apt=paper[1], speedup=paper[1] / paper[0])
    return row


def check_tome(case: Case) -> None:
    """Raise ValueError for a row that token merging does not have."""
    if case.mode == 'train' or case.compiled or case.new_images:
        raise ValueError('token merging is compared in forward passes over one batch that are not compiled: use '
                         '--mode forward, --compiled 0, and leave --new-images out')


def _measure(case: Case, repeats: int, warmup: int, with_tome: bool, stages: bool, memory: bool,
             checkpoint: str | Path | None) -> Row:
    """All of a row but the paper's figures."""
    row = _times(case, repeats, warmup, with_tome, stages, checkpoint)
    if memory:  # the models are gone by now: a GPU must hold one at a time
        for name in ('dense', 'apt'):
            row[name]['memory'] = peak_memory(case, name)
        row['scoring_memory'] = peak_memory(case, 'score')
    return row


def _times(case: Case, repeats: int, warmup: int, with_tome: bool, stages: bool,
           checkpoint: str | Path | None) -> Row:
    """What the models do, their times and their ideal."""
    batches = [case.build_input(number) for number in range(warmup + repeats if case.new_images else 1)]
    models: dict[str, nn.Module] = {kind: case.build_model(kind == 'dense', checkpoint) for kind in ('dense', 'apt')}
    layouts = [models['apt'].make_layout(x) for x in batches[warmup if case.new_images else 0:]]
    dense = dense_layout(layouts[0])
    tokens = [[length - layout.num_prefix for length in layout.images.lengths] for layout in layouts]
    settings = dataclasses.asdict(case) | dict(photos=[Path(photo).name for photo in case.photos])
    row: Row = dict(title=case.title, case=settings, batch=case.batch, device=device_name(case.device),
                    thresholds=case.apt_thresholds, tokens=tokens[0], cells=dense.num_cells,
                    kept=statistics.fmean(map(sum, tokens)) / dense.num_cells)
    work = {'dense': [multiply_adds(models['dense'], dense)],
            'apt': [multiply_adds(models['apt'], layout) for layout in layouts]}
    if with_tome:
        models['tome'] = token_merging(models['dense'], row['kept'])
        work['tome'] = [multiply_adds(models['tome'], dense)]
        row['distance'] = {name: distance(models['dense'], models[name], batches[0]) for name in ('apt', 'tome')}
    functions = {name: _in_turn(seconds_of_pass, case, model, batches) for name, model in models.items()}
    seconds = interleave(functions, repeats, warmup)
    operations = {name: statistics.mean(count.train_step(case.with_cp) if case.mode == 'train' else count.total
                                        for count in counts) for name, counts in work.items()}
    for name, times in seconds.items():
        row[name] = dict(seconds=summary(times), multiply_adds=operations[name])
        if name != 'dense':
            ratios = [base / time for base, time in zip(seconds['dense'], times, strict=True)]
            row[name] |= dict(speedup=statistics.median(ratios), speedup_range=[min(ratios), max(ratios)],
                              ideal=operations['dense'] / operations[name])
    if stages:
        functions = {name: _in_turn(seconds_of_stages, case, models[name], batches) for name in ('dense', 'apt')}
        for name, samples in interleave(functions, max(1, repeats // 3), 0).items():
            row[name]['stages'] = median_stages(samples)
    return row


def token_merging(dense: PackedViT, kept: float) -> PackedViT:
    """A model with the dense one's weights that merges tokens by ToMe, after every global block but the last.

    Raises:
        ValueError: if that cannot leave so few.
    """
    model = copy.deepcopy(dense, {id(parameter): parameter for parameter in dense.parameters()})
    last = len(dense.blocks) - 1
    blocks = sorted((dense.global_blocks or set(range(last))) - {last})
    model.reduction = build_reduction(dict(type='ToMe', kept=kept, blocks=blocks), last + 1, dense.embed_dims,
                                      dense.head_dim)
    return model


def _in_turn(measure: Callable[[Case, nn.Module, Tensor], Any], case: Case, model: nn.Module,
             batches: Sequence[Tensor]) -> Callable[[], Any]:
    """A function that measures the model on the next batch each time."""
    turns = itertools.cycle(batches)
    return lambda: measure(case, model, next(turns))


@torch.inference_mode()
def distance(dense: nn.Module, other: nn.Module, x: Tensor) -> dict[str, float]:
    """How far a model's features are from the dense one's: over the last map, mean cosine, and relative error (L2)."""
    wanted, got = dense(x)[-1].float(), other(x)[-1].float()
    return dict(cosine=torch.cosine_similarity(wanted, got, 1).mean().item(),
                relative_error=((got - wanted).norm() / wanted.norm()).item())


def device_name(device: str) -> str:
    """The device in words."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f'{_cpu_name()}, {threads} thread{"s" if threads > 1 else ""}'


def _cpu_name() -> str:
    """The processor's model as Linux gives it, else its architecture."""
    cpuinfo = Path('/proc/cpuinfo')
    models = [line.partition(':')[2].strip() for line in cpuinfo.read_text().splitlines()
              if line.startswith('model name')] if cpuinfo.is_file() else []
    return f'{platform.machine()} CPU{f" ({models[0]})" if models else ""}'


def environment(command: Sequence[str]) -> dict[str, str]:
    """What the figures depend on besides the cases: date, versions, commit and command."""
    return dict(date=datetime.date.today().isoformat(), torch=torch.__version__, python=platform.python_version(),
                commit=code_version(Path(__file__).parents[1]), command=' '.join(command))


def code_version(folder: Path) -> str:
    """The commit of the code in a folder, 'abc1234' or 'abc1234 with changes', nothing without a repository or git."""
    def git(*arguments: str) -> str:
        done = subprocess.run(['git', *arguments], cwd=folder, capture_output=True, text=True, check=False)
        return done.stdout.strip()
    if shutil.which('git') is None:
        return ''
    return git('rev-parse', '--short', 'HEAD') + (' with changes' if git('status', '--porcelain', '--', '.') else '')
