"""Rows as a table (Markdown, which a terminal shows just as well), as JSON and as a plot."""
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apt_dense.benchmark.cases import Case
from apt_dense.benchmark.measure import STAGES
from apt_dense.benchmark.run import Row
from apt_dense.core.files import write_atomically
from apt_dense.extras import from_extra

METHOD_NAMES = {'apt': 'APT', 'tome': 'ToMe'}
MODE_NAMES = {'forward': 'forward pass', 'train': 'training step'}
INK, BLUE, GREY = '#1f2328', '#0969da', '#8c959f'  # of texts, of APT, of the dense twin
STYLE = {'text.color': INK, 'axes.labelcolor': INK, 'axes.edgecolor': INK, 'xtick.color': INK, 'ytick.color': INK,
         'axes.spines.top': False, 'axes.spines.right': False, 'figure.facecolor': 'white'}


def format_seconds(seconds: float) -> str:
    """Three significant digits, in ms below one second; nothing for 0."""
    if seconds == 0:
        return '-'
    value, unit = (seconds, 's') if seconds >= 1 else (seconds * 1000, 'ms')
    return f'{value:.{max(0, 2 - math.floor(math.log10(value)))}f} {unit}'


def _spread(entry: dict[str, Any]) -> str:
    """The median of some seconds, and their range if there are several."""
    seconds = entry['seconds']
    spread = f' ({format_seconds(seconds["min"])} - {format_seconds(seconds["max"])})' if rounds_of(entry) > 1 else ''
    return format_seconds(seconds['median']) + spread


def rounds_of(entry: dict[str, Any]) -> int:
    """How often it was timed."""
    return len(entry['seconds']['times'])


def _mib(entry: dict[str, Any] | None, which: str = 'extra') -> str:
    return f'{entry[which]:.0f}' if entry else '-'


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; the first column is text, the others are numbers."""
    widths = [max(2, *(len(line[i]) for line in (header, *lines))) for i in range(len(header))]
    rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]

    def joined(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells[1:], widths[1:], strict=True))]
        return f'| {" | ".join(padded)} |'

    return '\n'.join(joined(cells) for cells in (header, rule, *lines))


def rewrite(page: str, name: str, text: str) -> str:
    """The page with the part of this name replaced.

    Raises:
        ValueError: if the page has no such part.
    """
    pattern = rf'(<!-- {name} -->\n).*?(<!-- end of {name} -->)'
    if not re.search(pattern, page, re.DOTALL):
        raise ValueError(f'the page has no <!-- {name} --> ... <!-- end of {name} -->: add the two lines where the '
                         'tables are to stand')
    return re.sub(pattern, lambda match: f'{match[1]}\n{text}\n\n{match[2]}', page, flags=re.DOTALL)


def times_table(rows: Sequence[Row]) -> str:
    """Dense against APT (and token merging): seconds of a batch, speed-up, ideal, and the one over the other."""
    header = ['model', 'mode', 'batch', 'thresholds', 'kept', 'dense', 'method', 'time', 'speed-up', 'ideal',
              'of ideal']
    lines = []
    for row in rows:
        for name in METHOD_NAMES:
            if name not in row:
                continue
            entry = row[name]
            low, high = entry['speedup_range']
            spread = f' ({low:.3f}-{high:.3f})' if rounds_of(entry) > 1 else ''
            lines.append([row['title'], mode_of(row), str(row['batch']), thresholds_of(row) if name == 'apt' else '-',
                          f'{row["kept"]:.3f}', _spread(row['dense']), METHOD_NAMES[name], _spread(entry),
                          f'{entry["speedup"]:.3f}{spread}', f'{entry["ideal"]:.3f}',
                          f'{entry["speedup"] / entry["ideal"]:.3f}'])
    return markdown(header, lines)


def mode_of(row: Row) -> str:
    """Forward or train, and what is special about it: a type other than float32, or an option."""
    case = row['case']
    special = {'compiled': 'compiled', 'graph_tokens': 'graphs', 'with_cp': 'checkpointing',
               'proportional': 'proportional', 'deterministic': 'deterministic'}
    return ', '.join([case['mode'], *([case['dtype']] if case['dtype'] != 'float32' else []),
                      *(words for name, words in special.items() if case.get(name))])


def thresholds_of(row: Row) -> str:
    """The thresholds of a row's APT model, fine to coarse."""
    return ' '.join(f'{threshold:g}' for threshold in row['thresholds'])


def stages_table(rows: Sequence[Row]) -> str:
    """Median seconds of each stage, dense and APT."""
    rows = [row for row in rows if 'stages' in row['apt']]
    names = [name for name in STAGES if any(name in row['apt']['stages'] for row in rows)]
    lines = [[f'{row["title"]}, {mode_of(row)}, batch {row["batch"]}, kept {row["kept"]:.3f}', kind,
              *(format_seconds(row[kind]['stages'].get(name, 0.0)) for name in names)]
             for row in rows for kind in ('dense', 'apt')]
    return markdown(['model', 'method', *names], lines)


def memory_table(rows: Sequence[Row]) -> str:
    """Peak memory of a pass over weights, gradients and input, and the whole peak."""
    lines = []
    for row in rows:
        if 'memory' not in row['apt']:
            continue
        dense, apt = row['dense']['memory'], row['apt']['memory']
        lines.append([row['title'], mode_of(row), str(row['batch']), thresholds_of(row), f'{row["kept"]:.3f}',
                      _mib(dense), _mib(apt), f'{apt["extra"] / dense["extra"]:.2f}', _mib(dense, 'total'),
                      _mib(apt, 'total'), f'{apt["total"] / dense["total"]:.2f}', _mib(row['scoring_memory'])])
    return markdown(['model', 'mode', 'batch', 'thresholds', 'kept', 'dense MiB', 'APT MiB', 'ratio',
                     'dense with weights', 'APT with weights', 'ratio', 'scoring MiB'], lines)


def distance_table(rows: Sequence[Row]) -> str:
    """How far the features are from the dense model's."""
    lines = [[row['title'], thresholds_of(row) if name == 'apt' else '-', f'{row["kept"]:.3f}', METHOD_NAMES[name],
              f'{row[name]["speedup"]:.3f}',
              f'{found["cosine"]:.4f}', f'{found["relative_error"]:.3f}']
             for row in rows for name, found in row.get('distance', {}).items()]
    return markdown(['model', 'thresholds', 'kept', 'method', 'speed-up', 'cosine to dense', 'relative error'], lines)


def unequal_table(rows: Sequence[Row]) -> str:
    """Batches by their images' tokens: time and memory per token, against the dense model's batch."""
    lines = []
    for row in rows:
        tokens, apt = row['tokens'], row['apt']
        seconds, extra = apt['seconds']['median'], apt['memory']['extra'] if 'memory' in apt else None
        lines.append([row['title'], mode_of(row), thresholds_of(row), ' + '.join(map(str, tokens)), str(sum(tokens)),
                      str(len(tokens) * max(tokens)), format_seconds(seconds),
                      format_seconds(row['dense']['seconds']['median']), f'{extra:.0f}' if extra else '-',
                      f'{seconds / sum(tokens) * 1e6:.0f}'])
    return markdown(['model', 'mode', 'thresholds', 'tokens of the images', 'sum', 'padded to the longest', 'APT',
                     'dense', 'APT MiB', 'APT us per token'], lines)


def paper_table(rows: Sequence[Row]) -> str:
    """The paper's speed-ups beside those measured: theirs of the whole model on an RTX A6000, these of the backbone."""
    lines = [[f'{row["title"]}, {mode_of(row)}', f'{row["paper"]["dense"]:.2f}', f'{row["paper"]["apt"]:.2f}',
              f'{row["paper"]["speedup"]:.2f}', f'{row["kept"]:.3f}', f'{row["apt"]["speedup"]:.2f}',
              f'{row["apt"]["ideal"]:.2f}'] for row in rows if 'paper' in row]
    return markdown(['model', 'paper, RTX A6000: dense img/s', 'APT img/s', 'speed-up', 'here: kept',
                     'backbone speed-up', 'ideal'], lines)


def whole_table(results: dict[str, dict[str, Any]]) -> str:
    """Whole detectors or segmentors, as benchmark_model.py measures them: the speed-up of the first over the second."""
    lines = []
    for name, result in results.items():
        thresholds, kept = result['thresholds'], result['kept']
        spread = ' ({:.3f}-{:.3f})'.format(*result['speedup_range']) if 'speedup' in result else ''
        lines.append([name, ' '.join(f'{threshold:g}' for threshold in thresholds) if thresholds else '-',
                      f'{kept:.3f}' if kept else '-', f'{result["images_per_second"]:.3f}', _spread(result),
                      f'{result["speedup"]:.3f}{spread}' if spread else '-'])
    return markdown(['config', 'thresholds', 'kept', 'img/s', 'time of a batch (over the images)', 'speed-up'], lines)


def describe(rows: Sequence[Row]) -> str:
    """One line on what all rows share: device, dtype, backend, clock, rounds that count."""
    parts = []
    for name in ('device', 'dtype', 'backend', 'clock'):
        values = dict.fromkeys(row['device'] if name == 'device' else row['case'][name] for row in rows)
        parts.append(f'{"attention " if name == "backend" else ""}{" and ".join(values)}'
                     f'{" time" if name == "clock" else ""}')
    parts.append(' and '.join(dict.fromkeys(count(rounds_of(row['dense']), 'round') for row in rows)))
    if any(row['case'].get('new_images') for row in rows):
        parts.append('new images in each')
    return ', '.join(parts)


def count(number: int, what: str) -> str:
    """'1 round', '3 rounds'."""
    return f'{number} {what}{"" if number == 1 else "s"}'


def report(rows: Sequence[Row]) -> str:
    """All tables that the rows have something for."""
    if not rows:
        return 'no row was measured'
    tables = [describe(rows), times_table(rows)]
    for table, present in ((stages_table, any('stages' in row['apt'] for row in rows)),
                           (memory_table, any('memory' in row['apt'] for row in rows)),
                           (distance_table, any('distance' in row for row in rows)),
                           (paper_table, any('paper' in row for row in rows))):
        if present:
            tables.append(table(rows))
    return '\n\n'.join(tables)


def save_json(path: str | Path, rows: Sequence[Row], environment: dict[str, str],
              left_out: Sequence[str] = ()) -> None:
    """Write the rows, what they depend on, and the names of rows that did not fit the GPU; never half a file."""
    content = dict(environment=environment, rows=list(rows)) | (dict(left_out=list(left_out)) if left_out else {})
    write_atomically(path, json.dumps(content, indent=1) + '\n')


def plot(path: str | Path, rows: Sequence[Row]) -> None:
    """Write the picture of ``draw``, and below it what all rows share."""
    with from_extra('tools'):
        import matplotlib
        from matplotlib import pyplot as plt
    matplotlib.use('Agg')
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        figure = draw(plt, rows)
        figure.supxlabel(describe(rows), fontsize='small')
        figure.savefig(path, dpi=110)
        plt.close(figure)


def draw(plt, rows: Sequence[Row]):
    """One panel for each group of rows: time over what varies in it, else measured and ideal speed-ups as bars.

    Args:
        plt: matplotlib's pyplot.

    Returns:
        The figure.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row['group'], []).append(row)
    figure, axes = plt.subplots(1, len(groups), figsize=(5.2 * len(groups), 4.2), squeeze=False, layout='constrained')
    for axis, (group, members) in zip(axes[0], groups.items(), strict=True):
        if group in AXES:
            _plot_growth(axis, group, members)
        else:
            _plot_bars(axis, members)
        axis.set_title(_constants(group, members) if group in AXES else group, fontsize='medium')
    series = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(series.values(), series, frameon=False, fontsize='small', loc='outside upper center',
                  ncols=min(3, 1 + len(groups)))
    return figure


AXES = {
    'pixels': ('megapixels', lambda row: row['case']['img_size']**2 / 1e6),
    'batch': ('images in the batch', lambda row: row['batch']),
    'kept': ("kept tokens, % of the dense twin's", lambda row: 100 * row['kept']),
}


def _constants(group: str, rows: Sequence[Row]) -> str:
    """What a panel's rows share: all but what grows."""
    first = rows[0]
    parts = dict(pixels=f'{first["case"]["img_size"]} px', batch=f'batch {first["batch"]}',
                 kept=f'{100 * first["kept"]:.0f} % kept')
    shared = ', '.join(text for name, text in parts.items() if name != group)
    return f'{Case(first["case"]["model"]).encoder_name}, {MODE_NAMES[first["case"]["mode"]]}\n{shared}'


def _plot_growth(axis, group: str, rows: Sequence[Row]) -> None:
    """Seconds of dense twin and APT over what grows, and the dense time divided by the ideal speed-up."""
    label, value = AXES[group]
    x = [value(row) for row in rows]
    dense = [row['dense']['seconds']['median'] for row in rows]
    axis.plot(x, dense, 'o-', color=GREY, label='dense twin')
    axis.plot(x, [row['apt']['seconds']['median'] for row in rows], 'o-', color=BLUE, label='APT')
    axis.plot(x, [time / row['apt']['ideal'] for time, row in zip(dense, rows, strict=True)], ':', color=INK,
              label='what the multiply-adds promise')
    axis.set(xlabel=label, ylabel='time, s', ylim=(0, None), xlim=(0, None))
    axis.grid(alpha=0.25)


def _plot_bars(axis, rows: Sequence[Row]) -> None:
    """Measured and ideal speed-up of each row."""
    names = [f'{row["title"]}\n{mode_of(row)}, batch {row["batch"]}, {100 * row["kept"]:.0f} % kept' for row in rows]
    places = range(len(rows))
    axis.barh([place - 0.2 for place in places], [row['apt']['speedup'] for row in rows], 0.4, color=BLUE,
              label='measured')
    axis.barh([place + 0.2 for place in places], [row['apt']['ideal'] for row in rows], 0.4, color=GREY,
              label='what the multiply-adds promise')
    axis.set_yticks(list(places), names, fontsize='small')
    axis.invert_yaxis()
    axis.set_xlabel('times as fast as the dense twin')
