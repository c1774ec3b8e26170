"""The charts of docs/benchmarks.md and of the README, from the measured files of docs/benchmarks."""
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt_dense.benchmark import report
from apt_dense.benchmark.report import BLUE, GREY, INK, MODE_NAMES, STYLE
from apt_dense.benchmark.run import Row
from apt_dense.extras import from_extra

ORANGE, GREEN = '#d1570f', '#1a7f37'
PAPER_WITHOUT_REDUCTION = (0.91, 0.95)  # of the dense model's throughput, arXiv 2510.18091


@dataclass(frozen=True)
class Chart:
    """One picture.

    Attributes:
        files: names of the JSON files that it shows.
        draw: pyplot and their rows by name -> a figure.
    """
    files: tuple[str, ...]
    draw: Callable[[Any, dict[str, list[Row]]], Any]


def save(folder: Path, name: str) -> bool:
    """Draw FOLDER/NAME.png from the folder's files; False, and nothing drawn, where one of them is missing.

    The picture holds the digest of what it was drawn from, see ``digest``.
    """
    chart = CHARTS[name]
    paths = {file: folder / f'{file}.json' for file in chart.files}
    if not all(path.is_file() for path in paths.values()):
        return False
    with from_extra('tools'):
        import matplotlib
        from matplotlib import pyplot as plt
    matplotlib.use('Agg')
    with plt.rc_context({'font.size': 13, **STYLE}):
        figure = chart.draw(plt, {file: json.loads(path.read_text(encoding='utf-8'))['rows']
                                  for file, path in paths.items()})
        figure.savefig(folder / f'{name}.png', dpi=130, metadata={'Source': digest(folder, name)})
        plt.close(figure)
    return True


def digest(folder: Path, name: str) -> str:
    """What a chart's PNG says of its files under 'Source': their SHA-256, one after the other."""
    return ' '.join(f'{file}.json {hashlib.sha256((folder / f"{file}.json").read_bytes()).hexdigest()}'
                    for file in CHARTS[name].files)


def relative_times(rows: list[Row]) -> list[tuple[float, float, float]]:
    """(kept tokens, time over the dense twin's, what the multiply-adds promise) of each row, from all tokens down."""
    return sorted(((row['kept'], 1 / row['apt']['speedup'], 1 / row['apt']['ideal']) for row in rows), reverse=True)


def _draw_kept(plt, rows: dict[str, list[Row]]):
    """Time against kept tokens, in percent of the dense twin's."""
    series = (
        ('EVA-02-B, forward pass', BLUE, 'o', rows['kept'] + _of_model(rows['overhead'], 'B')),
        ('EVA-02-L, forward pass', ORANGE, 's', rows['kept_l'] + _of_model(rows['overhead'], 'L')),
        ('EVA-02-B, training step', GREEN, '^', rows['kept_train'] + rows['overhead_train']),
    )
    figure, axis = plt.subplots(figsize=(9, 5), layout='constrained')
    axis.plot([0, 100], [0, 100], color=GREY, linewidth=1.2, linestyle='--', label='time in proportion to the tokens')
    for label, colour, marker, members in series:
        kept, times, promised = ([100 * value for value in values]
                                 for values in zip(*relative_times(members), strict=True))
        axis.plot(kept, promised, color=colour, linewidth=1.5, linestyle=':')
        axis.plot(kept, times, color=colour, marker=marker, markersize=9, linestyle='none', label=label)
    axis.plot([], [], color=INK, linewidth=1.5, linestyle=':', label='what the multiply-adds promise')
    for kept, time, _ in relative_times(rows['kept']):
        axis.annotate(f'{1 / time:.1f} times\nas fast', (100 * kept, 100 * time), (14, -30), color=BLUE, fontsize=12,
                      textcoords='offset points')
    axis.set(xlabel='kept tokens, % of the dense twin\'s', ylabel='time, % of the dense twin\'s', xlim=(25, 104),
             ylim=(0, 106))
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=12, loc='upper left')
    return figure


def _draw_overhead(plt, rows: dict[str, list[Row]]):
    """Throughput where no patch is merged, over the dense twin's."""
    members = [row for file in rows for row in rows[file]]
    figure, axis = plt.subplots(figsize=(9, 3.9), layout='constrained')
    low, high = PAPER_WITHOUT_REDUCTION
    axis.axvspan(low, high, color=ORANGE, alpha=0.2, label=f'paper: {low} to {high}')
    axis.axvline(1, color=INK, linewidth=1.2, linestyle='--', label='dense twin')
    for place, row in enumerate(members):
        value, (least, most) = row['apt']['speedup'], row['apt']['speedup_range']
        axis.plot([least, most], [place, place], color=BLUE, linewidth=3, alpha=0.5)
        axis.plot(value, place, color=BLUE, marker='o', markersize=9, linestyle='none',
                  label='here: median, and range of the rounds' if place == 0 else None)
        axis.annotate(f'{value:.3f}', (1.045, place), va='center', color=BLUE, fontsize=13)
    axis.set_yticks(range(len(members)), [_name(row) for row in members])
    axis.set(xlabel='throughput where nothing merges (dense twin: 1)', xlim=(0.9, 1.06),
             ylim=(len(members) - 0.5, -0.8))
    axis.grid(axis='x', alpha=0.25)
    figure.legend(frameon=False, fontsize=11, loc='outside upper center', ncols=3)
    return figure


def _draw_costs(plt, rows: dict[str, list[Row]]):
    """The time of scoring beside plain ways to compute the same, and the memory of a training step."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout='constrained')
    names = {'one-hot': 'one-hot histogram', 'histc': 'torch.histc', 'apt_dense': 'apt_dense'}
    times = {row['method']: row['seconds'] / row['img_size']**2 * 1e9 for row in rows['scoring']}
    bars = left.barh(list(names.values()), [times[name] for name in names], color=[GREY, GREY, BLUE])
    left.bar_label(bars, [f' {times[name]:.{0 if times[name] > 100 else 1}f}' for name in names], fontsize=12)
    left.set(xscale='log', xlim=(1, 8000), xlabel='ns per pixel (logarithmic)', title='entropy of all patches')
    labels = ['as it is', 'with activation\ncheckpointing']
    for shift, kind, colour, label in ((-0.2, 'dense', GREY, 'dense twin'), (0.2, 'apt', BLUE, 'APT, 70 % kept')):
        bars = right.barh([place + shift for place in range(len(labels))],
                          [row[kind]['memory']['extra'] / 1024 for row in rows['memory']], 0.38, color=colour,
                          label=label)
        right.bar_label(bars, fmt=' %.2f', fontsize=12)
    right.set_yticks(range(len(labels)), labels)
    right.set(xlabel='GiB over weights and gradients', title='training step, EVA-02-B, 1536 px', xlim=(0, 8.4))
    right.legend(frameon=False, fontsize=12, loc='lower right')
    for axis in (left, right):
        axis.invert_yaxis()
    return figure


def _draw_gpu(plt, rows: dict[str, list[Row]]):
    """Time on a GPU over the dense twin's."""
    members = rows['gpu_short']
    figure, axis = plt.subplots(figsize=(9, 6.4), layout='constrained')
    axis.axvline(1, color=INK, linewidth=1.2, linestyle='--', label='dense twin')
    axis.barh(range(len(members)), [1 / row['apt']['speedup'] for row in members], 0.6, color=BLUE,
              label='APT, measured')
    for place, row in enumerate(members):
        apt, dense = (1000 * row[kind]['seconds']['median'] for kind in ('apt', 'dense'))
        axis.annotate(f'{apt:.0f} of {dense:.0f} ms', (1.37, place), va='center', fontsize=11)
    axis.plot([1 / row['apt']['ideal'] for row in members], range(len(members)), color=ORANGE, marker='D', markersize=7,
              linestyle='none', label='what the multiply-adds promise')
    axis.set_yticks(range(len(members)), [_short_name(row) for row in members], fontsize=11)
    axis.set(xlabel='time (dense twin: 1)', xlim=(0, 1.85), ylim=(len(members) - 0.4, -0.6))
    axis.grid(axis='x', alpha=0.25)
    figure.legend(frameon=False, fontsize=11, loc='outside upper center', ncols=3)
    return figure


def _short_name(row: Row) -> str:
    case = row['case']
    option = ', compiled' if case['compiled'] else ', CUDA graph' if case.get('graph_tokens') else ''
    return (f'{MODE_NAMES[case["mode"]]}, {case["img_size"]} px, batch {row["batch"]}, {row["kept"]:.0%} kept{option}')


def _of_model(rows: list[Row], model: str) -> list[Row]:
    return [row for row in rows if row['case']['model'] == model]


def _name(row: Row) -> str:
    title = row['title'].replace(' det ', ', ').replace(' seg ', ', ').replace(' first', ',')
    return f'{title} px, {MODE_NAMES[row["case"]["mode"]]}'


CHARTS = {
    'gpu': Chart(('gpu_short',), _draw_gpu),
    'kept': Chart(('kept', 'kept_l', 'kept_train', 'overhead', 'overhead_train'), _draw_kept),
    'overhead': Chart(('overhead', 'overhead_512', 'overhead_train', 'overhead_train_l', 'overhead_train_512'),
                      _draw_overhead),
    'costs': Chart(('scoring', 'memory'), _draw_costs),
    'growth': Chart(('growth',), lambda plt, rows: report.draw(plt, rows['growth'])),
}
