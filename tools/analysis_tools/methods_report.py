"""Tables and the plot of compare_methods.py."""
from pathlib import Path

from methods import METHODS

from apt_dense.drawing.saving import save_figure
from apt_dense.extras import from_extra

with from_extra('tools'):
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

METRICS = {'accuracy/top1': 1, 'coco/bbox_mAP': 100, 'mIoU': 1}  # the first that there is, and what makes it per cent
Rows = dict[str, dict]


def metric_of(rows: Rows) -> tuple[str, int]:
    """The metric that is compared, and its factor."""
    return next((name, unit) for name, unit in METRICS.items() if any(name in row for row in rows.values()))


def table(name: str, rows: Rows) -> str:
    """One config's figures in Markdown."""
    metric, unit = metric_of(rows)
    lines = [f'### {name}', '', f'| method | kept tokens | {metric} | backbone | model |', '|---|---:|---:|---:|---:|']
    for row in rows.values():
        label = METHODS[row['method']][0] if row['method'] in METHODS else row['method']
        if 'refused' in row:
            lines.append(f'| {label} | {row["budget"]:g} | | | {row["refused"]} |')
        else:
            speedups = ' | '.join(f'{row["speedup"][part][0]:.2f} x' for part in ('backbone', 'model'))
            lines.append(f'| {label} | {row["kept"]:.2f} | {unit * row[metric]:.1f} | {speedups} |')
    return '\n'.join(lines) + '\n'


def draw(path: Path, content: dict[str, Rows], title: str) -> None:
    """A panel for each config: accuracy against the backbone's speed-up, a line for each method."""
    figure, axes = pyplot.subplots(1, len(content), figsize=(5.6 * len(content), 4.6), squeeze=False)
    for axis, (name, rows) in zip(axes[0], content.items(), strict=True):
        metric, unit = metric_of(rows)
        for index, (method, (label, _)) in enumerate({'dense': ('dense', None), **METHODS}.items()):
            points = [(row['speedup']['backbone'][0], unit * row[metric]) for row in rows.values()
                      if row['method'] == method and metric in row]
            if points:
                style = dict(marker='*', markersize=11, color='black') if method == 'dense' else dict(
                    marker='o', markersize=4, color=f'C{index - 1}')
                axis.plot(*zip(*points, strict=True), linewidth=1.4, label=label, **style)
        axis.set(xlabel='speed-up of the backbone, measured', ylabel=f'{metric}, per cent', title=name)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title)
    figure.tight_layout()
    save_figure(figure, path, dpi=110)
    pyplot.close(figure)
