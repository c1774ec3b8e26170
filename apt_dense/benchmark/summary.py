"""What a folder of figures, such as docs/benchmarks, says about the goals of speed and memory."""
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt_dense.benchmark.report import markdown, mode_of
from apt_dense.benchmark.run import Row

MAX_SCORING_PERCENT = {'B': 2.0, 'L': 1.0}  # of the dense forward pass at 1536 px


@dataclass(frozen=True)
class Goal:
    """A line of the summary.

    Attributes:
        title, wanted: in words.
        files: names of JSON files.
        figure: a row -> what it is of, the value, the value in words.
        is_met: whether a value of a row will do.
        methods: of scoring, whose rows count; of another benchmark, all rows do.
    """
    title: str
    wanted: str
    files: tuple[str, ...]
    figure: Callable[[Row], tuple[str, float, str]]
    is_met: Callable[[float, Row], bool]
    methods: tuple[str, ...] = ()


def table(folder: Path, goals: Sequence[Goal] | None = None) -> str:
    """The goals, what the rows of the folder's NAME.json say, and whether all of them meet the goal.

    Goals of which a file is not there, has no row or leaves rows out are not met yet, or are missed already.

    Args:
        goals: GOALS if None.
    """
    lines = []
    for goal in GOALS if goals is None else goals:
        paths = [folder / f'{name}.json' for name in goal.files]
        rows = [row for path in paths for row in _rows(path) if not goal.methods or row['method'] in goal.methods]
        figures = [goal.figure(row) for row in rows]
        measured: dict[str, list[str]] = {}
        for label, _, text in figures:
            measured.setdefault(label, []).append(text)
        words = [f'{label}: {", ".join(texts)}' for label, texts in measured.items()]
        missing = [path.stem for path in paths if not any(_rows(path))]
        if missing:
            words.append(f'{", ".join(missing)}: not measured')
        left_out = [path.stem for path in paths if path.is_file() and _content(path).get('left_out')]
        if left_out:
            words.append(f'{", ".join(left_out)}: not all rows')
        is_missed = not all(goal.is_met(value, row) for (_, value, _), row in zip(figures, rows, strict=True))
        is_met = 'no' if is_missed else '-' if missing or left_out else 'yes'
        lines.append([goal.title, goal.wanted, '; '.join(words), is_met])
    return markdown(['', 'goal', 'measured', 'met'], lines)


def _rows(path: Path) -> Iterator[Row]:
    """The rows of a benchmark; of scoring, each with its time per pixel over that of apt_dense.

    Of whole models the one that has a speed-up over the other, with its 'name'.
    """
    content = _content(path) if path.is_file() else {}
    rows = content.get('rows', [])
    yield from (result | dict(name=path.stem) for result in content.get('results', {}).values() if 'speedup' in result)
    times = {row['method']: row['seconds'] / row['img_size']**2 for row in rows if 'method' in row}
    yield from (row | dict(times_own=times[row['method']] / times['apt_dense']) if times else row for row in rows)


def _content(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding='utf-8'))


def _name(row: Row) -> str:
    special = mode_of(row).partition(', ')[2]
    return row['title'].removeprefix('EVA-02-') + (f', {special}' if special else '')


def _speedup(row: Row) -> tuple[str, float, str]:
    value = row['apt']['speedup']
    return _name(row), value, f'{value:.3f}'


def _of_ideal(row: Row) -> tuple[str, float, str]:
    value = row['apt']['speedup'] / row['apt']['ideal']
    return _name(row), value, f'{value:.3f} (kept {row["kept"]:.1f})'


def _whole(row: Row) -> tuple[str, float, str]:
    return row['name'], row['speedup'], f'{row["speedup"]:.3f} (kept {row["kept"]:.2f})'


def _scoring_percent(row: Row) -> tuple[str, float, str]:
    stages = row['apt']['stages']
    value = 100 * (stages['score'] + stages['layout']) / row['dense']['seconds']['median']
    return _name(row), value, f'{value:.2f} %'


def _scoring_memory(row: Row) -> tuple[str, float, str]:
    value = row['memory']['extra'] * 2**20 / 1e6
    return f'{row["img_size"]} px', value, f'{value:.0f} MB'


def _scoring_time(row: Row) -> tuple[str, float, str]:
    return row['method'], row['times_own'], f'{row["times_own"]:.1f} times'


def _training_memory(row: Row) -> tuple[str, float, str]:
    value = row['apt']['memory']['extra'] / row['dense']['memory']['extra']
    return _name(row), value, f'{value:.2f}'


GOALS = (
    Goal('Throughput without reduction, forward', 'at least 0.98 of dense', ('overhead', 'overhead_512'), _speedup,
         lambda value, row: value >= 0.98),
    Goal('Throughput without reduction, training', 'at least 0.98 of dense',
         ('overhead_train', 'overhead_train_l', 'overhead_train_512'), _speedup, lambda value, row: value >= 0.98),
    Goal('Speed-up over ideal, forward', 'at least 0.97 on a CPU', ('kept', 'kept_l'), _of_ideal,
         lambda value, row: value >= 0.97),
    Goal('Speed-up over ideal, training', 'at least 0.9', ('kept_train',), _of_ideal, lambda value, row: value >= 0.9),
    Goal('Scoring and layout, of the dense forward pass', 'at most 2 % (B), 1 % (L)', ('overhead',), _scoring_percent,
         lambda value, row: value <= MAX_SCORING_PERCENT[row['case']['model']]),
    Goal('Memory of scoring and layout, batch 1', 'less than 64 MB', ('scoring',), _scoring_memory,
         lambda value, row: value < 64, methods=('apt_dense, whole',)),
    Goal('Time of a one-hot histogram, over that of scoring', 'at least 30 times', ('scoring',), _scoring_time,
         lambda value, row: value >= 30, methods=('one-hot',)),
    Goal('Time of torch.histc for every patch, over that of scoring', 'at least 1', ('scoring',), _scoring_time,
         lambda value, row: value >= 1, methods=('histc',)),
    Goal('Memory of a training step over weights and gradients, kept 0.7', 'at most 0.75 of dense', ('memory',),
         _training_memory, lambda value, row: value <= 0.75),
)

# Of the first hour on a GPU, tools/benchmark/gpu_hour.py.
GPU_GOALS = (
    Goal('Throughput without reduction, forward', 'at least 0.98 of dense', ('no_reduction',), _speedup,
         lambda value, row: value >= 0.98),
    Goal('Throughput without reduction, training', 'at least 0.98 of dense', ('no_reduction_train',), _speedup,
         lambda value, row: value >= 0.98),
    Goal('Speed-up over ideal, forward', 'at least 0.95', ('kept',), _of_ideal, lambda value, row: value >= 0.95),
    Goal('Speed-up over ideal, training', 'at least 0.9', ('kept_train',), _of_ideal, lambda value, row: value >= 0.9),
    Goal('End to end, L at 1536 px, kept 0.7', 'at least 1.30', ('whole_det',), _whole,
         lambda value, row: value >= 1.30),
    Goal('End to end, L at 512 px, kept 0.7', 'at least 1.15', ('whole_seg',), _whole,
         lambda value, row: value >= 1.15),
)
