"""Results of the experiments as pictures."""
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from cells import Cell
from grids import ADDED, ADDED_TENTH, DATASETS, ENTIRE_LONG, ENTIRE_TENTH, UNTRAINED, proportional
from report_tables import METRICS, Figures, Number, main_metric, over_seeds

from apt_dense.core.files import write_atomically
from apt_dense.extras import from_extra

with from_extra('tools'):
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASKS = {'det': 'detection', 'seg': 'segmentation'}
COLOURS = {training.name: f'C{index}'
           for index, training in enumerate((UNTRAINED, ADDED, ADDED_TENTH, ENTIRE_TENTH, ENTIRE_LONG))}
LINES = {'entropy': '--', 'upsampling_error_max': '-'}
UNTRAINED_LABELS = {('entropy', False): "the paper's entropy", ('entropy', True): "entropy, counted by their cells",
                    ('upsampling_error_max', False): 'maximum of the upsampling error',
                    ('upsampling_error_max', True): 'the same, merged patches counted by their cells'}


def _mean(values: Iterable[Number]) -> Number:
    values = [value for value in values if value is not None]
    return statistics.mean(values) if values else None


def _series(cells: Sequence[Cell], figures: Figures, x: str) -> dict[tuple[str, str], list[tuple[float, float, float]]]:
    """Scorer and training -> (x, mean, standard deviation) of each share of kept tokens, by x.

    Args:
        x: 'kept' or 'time', the time of a test over that of the dense model.
    """
    series: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for first, group in over_seeds(cell for cell in cells if cell.patches).items():
        values = [value for value in map(figures.metric, group) if value is not None]
        if x == 'kept':
            place = _mean(map(figures.kept, group))
        else:
            speedup = _mean(figures.speedup(cell, 'test') for cell in group)
            place = speedup and 1 / speedup
        if values and place is not None:
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            method = first.patches.scorer, first.training.name
            series.setdefault(method, []).append((place, statistics.mean(values), deviation))
    return {method: sorted(points) for method, points in series.items()}


def _draw_panel(axes: Axes, cells: Sequence[Cell], figures: Figures, x: str) -> None:
    dense = _mean(map(figures.metric, {cell.parent for cell in cells if cell.parent}))
    if dense is not None:
        axes.axhline(dense, color='black', linestyle=':', label='dense')
    for (scorer, training), points in _series(cells, figures, x).items():
        places, means, deviations = zip(*points, strict=True)
        axes.errorbar(places, means, deviations, marker='o', markersize=3, linewidth=1, capsize=2,
                      linestyle=LINES[scorer], color=COLOURS[training], label=f'{scorer}, {training}')


def accuracy_figure(cells: Sequence[Cell], figures: Figures, x: str) -> Figure:
    """Main metric against kept tokens or measured time, a panel for each task (columns) and dataset (rows)."""
    datasets = [name for name in DATASETS if any(figures.result(cell) for cell in cells if cell.dataset == name)]
    figure, grid = plt.subplots(len(datasets), len(TASKS), figsize=(12, 4.5 * len(datasets)), squeeze=False,
                                layout='constrained')
    for dataset, row in zip(datasets, grid, strict=True):
        for task, axes in zip(TASKS, row, strict=True):
            chosen = [cell for cell in cells if (cell.task, cell.dataset) == (task, dataset)]
            if not any(map(figures.result, chosen)):
                axes.set_axis_off()
                continue
            _draw_panel(axes, chosen, figures, x)
            axes.set(title=f'{TASKS[task]}, {dataset}', ylabel=METRICS[task][main_metric(task)],
                     xlabel='kept tokens of the content' if x == 'kept' else 'time of a test over the dense model\'s')
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=7)
    return figure


def untrained_figure(cells: Sequence[Cell], figures: Figures) -> Figure:
    """Points against the dense model of the same seed where nothing is trained; a panel for each task."""
    figure, columns = plt.subplots(1, len(TASKS), figsize=(12, 4.8), layout='constrained')
    for task, axes in zip(TASKS, columns, strict=True):
        lines: dict[str, list[tuple[float, float, float]]] = {}
        chosen = [cell for cell in cells if (cell.task, cell.dataset) == (task, 'native') and
                  cell.training == UNTRAINED and (cell.patches.scorer, cell.patches.proportional) in UNTRAINED_LABELS]
        for first, group in over_seeds(chosen).items():
            losses = [loss for loss in map(figures.loss, group) if loss is not None]
            if losses:
                deviation = statistics.stdev(losses) if len(losses) > 1 else 0.0
                label = UNTRAINED_LABELS[first.patches.scorer, first.patches.proportional]
                point = _mean(map(figures.kept, group)), -statistics.mean(losses), deviation
                lines.setdefault(label, []).append(point)
        axes.axhline(0, color='black', linestyle=':', label='dense')
        for label in UNTRAINED_LABELS.values():
            if label in lines:
                places, means, deviations = zip(*sorted(lines[label]), strict=True)
                axes.errorbar(places, means, deviations, marker='o', markersize=5, linewidth=2, capsize=3, label=label)
        axes.set(title=TASKS[task], xlabel='kept tokens of the content', ylabel=(
            f'{METRICS[task][main_metric(task)]}, points against the dense model'))
        axes.grid(alpha=0.3)
    columns[0].legend(loc='lower right')
    return figure


def recovery_figure(cells: Sequence[Cell], figures: Figures) -> Figure:
    """Recovery by method: a bar for each, a panel for each task; seeds are averaged."""
    figure, columns = plt.subplots(1, len(TASKS), figsize=(12, 8), layout='constrained')
    for task, axes in zip(TASKS, columns, strict=True):
        changed = over_seeds(cell for cell in cells if cell.task == task and (
            cell.training.share or cell.patches.proportional))
        means = {f'{first.dataset}, {first.patches.name}, {first.training.name}': _mean(map(figures.recovery, group))
                 for first, group in changed.items()}
        bars = {label: value for label, value in means.items() if value is not None}
        axes.barh(list(bars), list(bars.values()))
        axes.axvline(1, color='black', linestyle=':')
        axes.tick_params(labelsize=6)
        axes.invert_yaxis()
        axes.set(title=TASKS[task], xlabel='recovery, 1: the dense model')
    return figure


def write_plots(cells: Sequence[Cell], figures: Figures, folder: Path) -> list[str]:
    """Write the pictures, and return their names; none before a method has results at two shares of kept tokens."""
    by_panel = [[cell for cell in cells if (cell.task, cell.dataset) == (task, dataset)]
                for task in TASKS for dataset in DATASETS]
    if not any(len(points) > 1 for panel in by_panel for points in _series(panel, figures, 'kept').values()):
        return []
    pictures = {'accuracy_kept.png': accuracy_figure(cells, figures, 'kept'),
                'accuracy_time.png': accuracy_figure(cells, figures, 'time'),
                'recovery.png': recovery_figure([*proportional(), *cells], figures),
                'untrained.png': untrained_figure([*proportional(), *cells], figures)}
    for name, figure in pictures.items():
        write_atomically(folder / name, lambda file, figure=figure: figure.savefig(file, dpi=110, format='png'))
        plt.close(figure)
    return list(pictures)
