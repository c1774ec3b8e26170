"""Results of the experiments as Markdown tables: mean and standard deviation over the seeds."""
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from cell_results import Results
from cells import Cell

from apt_dense.benchmark.report import markdown

Number = float | None
METRICS = {
    'det': {'bbox_mAP': 'box mAP', 'segm_mAP': 'mask mAP', 'bbox_mAP_50': 'box AP50', 'bbox_mAP_s': 'small',
            'bbox_mAP_m': 'medium', 'bbox_mAP_l': 'large'},
    'seg': {'mIoU': 'mIoU', 'boundary_IoU': 'boundary IoU', 'aAcc': 'aAcc'},
}
LEAST_LOSS = 0.5  # points that Resizing must lose before a recovery of it means something


def main_metric(task: str) -> str:
    """The first of the task's metrics."""
    return next(iter(METRICS[task]))


class Figures:
    """Figures of cells, None where there is no result, and their spread over seeds."""

    def __init__(self, results: Results):
        self._results = results

    def result(self, cell: Cell | None) -> dict[str, Any] | None:
        """The result of a cell that is done."""
        result = cell and self._results.get(cell)
        return result if result and result['status'] == 'done' else None

    def metric(self, cell: Cell | None, name: str | None = None) -> Number:
        """A metric of a cell in percent, by default the task's main one."""
        result = self.result(cell)
        return result and result['metrics'].get(name or main_metric(cell.task))

    def kept(self, cell: Cell) -> Number:
        """Tokens over cells of the validation images' content."""
        result = self.result(cell)
        return result and result['kept']['content']

    def speedup(self, cell: Cell, what: str) -> Number:
        """Of the cell's model over the dense one, 'test' or 'train'."""
        result = self.result(cell)
        return result and result['times'] and result['times'][what]['speedup']

    def loss(self, cell: Cell) -> Number:
        """Points below the dense model with the same iterations."""
        return difference(self.metric(cell.control), self.metric(cell))

    def recovery(self, cell: Cell) -> Number:
        """(cell - Resizing) / (Dense - Resizing) of one seed; None where Resizing loses less than ``LEAST_LOSS``.

        None too for a training from random weights: Resizing is of other ones.
        """
        if cell.training.start == 'random':
            return None
        resizing = self.metric(cell.resizing)
        lost, regained = (difference(self.metric(one), resizing) for one in (cell.control, cell))
        return None if lost is None or regained is None or lost < LEAST_LOSS else regained / lost


def difference(first: Number, second: Number) -> Number:
    """None if one of them is."""
    return None if first is None or second is None else first - second


def spread(values: Iterable[Number], digits: int = 1) -> str:
    """Mean ± standard deviation (of the sample), and how many there are; nothing for none."""
    values = [value for value in values if value is not None]
    if not values:
        return '-'
    mean = f'{statistics.mean(values):.{digits}f}'
    return f'{mean} ± {statistics.stdev(values):.{digits}f} ({len(values)})' if len(values) > 1 else mean


def over_seeds(cells: Iterable[Cell]) -> dict[Cell, list[Cell]]:
    """The cells that differ in their seed alone, under the one with seed 0, in the order of the first."""
    groups: dict[Cell, list[Cell]] = {}
    for cell in cells:
        group = groups.setdefault(replace(cell, seed=0), [])
        if cell not in group:
            group.append(cell)
    return groups


def cells_table(cells: Sequence[Cell], figures: Figures) -> str:
    """One row for each cell that has a result, seeds together: metrics, what Dense and Resizing have, speed.

    All columns are of the seeds with which the cell has a result.
    """
    parts = []
    for task, names in METRICS.items():
        done = [cell for cell in cells if cell.task == task and figures.result(cell)]
        rows = [_row(first, group, figures, tuple(names)) for first, group in over_seeds(done).items()]
        if rows:
            main, *others = names.values()
            header = ['patches', 'dataset', 'training', main, 'Dense, same iterations', 'below it', 'Resizing',
                      'recovery', *others, 'kept', 'speed-up, test', 'speed-up, training']
            parts.append(markdown(header, rows))
    return '\n\n'.join(parts) or NOTHING


NOTHING = 'No cell of this table has been run.'


def _row(first: Cell, group: Sequence[Cell], figures: Figures, metrics: tuple[str, ...]) -> list[str]:
    def mean(function: Callable[[Cell], Number], digits: int = 1) -> str:
        return spread(map(function, group), digits)

    others = [mean(lambda cell, name=name: figures.metric(cell, name)) for name in metrics[1:]]
    return [first.patches.name if first.patches else 'dense', first.dataset, first.training.name,
            mean(figures.metric), mean(lambda cell: figures.metric(cell.control)), mean(figures.loss),
            mean(lambda cell: figures.metric(cell.resizing)), mean(figures.recovery, 2), *others,
            mean(figures.kept, 3), mean(lambda cell: figures.speedup(cell, 'test'), 2),
            mean(lambda cell: figures.speedup(cell, 'train'), 2)]


def curves_table(cells: Sequence[Cell], figures: Figures) -> str:
    """How the main metric of trainings from random weights grew, on the first validation images."""
    rows = []
    for cell in cells:
        result = figures.result(cell)
        if result and result['curve']:
            points = ', '.join(f'{value:.1f} ({iteration})' for iteration, value in result['curve'])
            rows.append([cell.name, f'{result["iterations"]}', points])
    return markdown(['run', 'iterations', 'metric (iteration)'], rows) if rows else NOTHING


def runs_table(cells: Sequence[Cell], results: Results, is_stale: Callable[[Cell], bool]) -> str:
    """Every run, also the failed ones."""
    rows = []
    for cell in cells:
        result = results.get(cell)
        if result is None:
            continue
        stale = ' (other code or config)' if is_stale(cell) else ''
        if result['status'] == 'failed':
            figures = f'failed: {result["error"]}'.replace('|', '\\|').replace('\n', ' ')
        else:
            figures = ', '.join(f'{label} {result["metrics"][name]:.2f}' for name, label in METRICS[cell.task].items()
                                if result['metrics'].get(name) is not None)
        kept = f'{result["kept"]["content"]:.3f}' if 'kept' in result else '-'
        rows.append([cell.name, figures + stale, kept, f'{result["seconds"]["wall"]:.0f}', str(result.get('commit'))])
    return markdown(['run', 'figures', 'kept', 'seconds', 'commit'], rows) if rows else NOTHING


def feature_loss_table(table: dict[str, dict[str, list[float]]]) -> str:
    """What feature_loss.py has found: a row a scorer, the best first; a column a model, all sizes and each."""
    if not table:
        return NOTHING
    models = sorted(table)
    names = sorted(table[models[0]], key=lambda name: -statistics.mean(table[model][name][-1] for model in models))
    rows = [[name, *(f'{values[-1]:.2f} ({", ".join(f"{value:.2f}" for value in values[:-1])})'
                     for values in (table[model][name] for model in models))] for name in names]
    return markdown(['scorer', *(model.replace('_', ', ') for model in models)], rows)


def state(cells: Sequence[Cell], results: Results, is_stale: Callable[[Cell], bool]) -> str:
    """How many of the cells have a result, in a sentence."""
    found = {cell: results.get(cell) for cell in cells if results.get(cell)}
    failed = sum(result['status'] == 'failed' for result in found.values())
    stale = sum(map(is_stale, found))
    if not found:
        return f'None of the {len(cells)} runs has been made.'
    return (f'{len(found) - failed} of {len(cells)} runs are done, {failed} have failed; {stale} of the results are of '
            'earlier code or configs.')
