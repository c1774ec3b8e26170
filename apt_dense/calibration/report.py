"""What thresholds keep of scored images: a table and a plot."""
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from apt_dense.calibration.thresholds import Family, ScoreMaps
from apt_dense.core.chooser import PatchChooser
from apt_dense.drawing.saving import save_figure
from apt_dense.extras import from_extra

with from_extra('tools'):
    import numpy as np


class Scored(NamedTuple):
    """Score maps of all inputs; ``owners``, which image (of ``paths``) each input is of; what could not be read."""
    maps: ScoreMaps
    owners: Tensor
    paths: list[str]
    errors: list[str]

    def per_image(self, values: Tensor) -> Tensor:
        """(inputs, ...) -> (images, ...): sums."""
        return values.new_zeros(len(self.paths), *values.shape[1:]).index_add_(0, self.owners, values)


def describe(chooser: PatchChooser, scored: Scored, thresholds: tuple[float, ...]) -> str:
    """The table: kept tokens in percent of the cells, over the images."""
    counts = scored.maps.count_tokens(thresholds)
    tokens, cells = scored.per_image(counts), scored.per_image(scored.maps.num_cells)
    sides = [f'{chooser.patch_size << scale} px' for scale in range(chooser.num_scales)]
    lines = [f'num_scales={chooser.num_scales}, thresholds={thresholds} (fine to coarse)',
             f'{len(tokens)} images, {len(counts)} inputs; tokens of the largest input: {counts.sum(1).max()} of '
             f'{scored.maps.num_cells.max()}',
             'tokens in % of the cells of an image; mean: of all images together; area: the share that they cover',
             f'{"":8}{"mean":>8}{"5 %":>8}{"50 %":>8}{"95 %":>8}{"area":>8}']
    total = cells.sum().item()
    content_cells = scored.per_image(scored.maps.num_content_cells)
    rows = [('all', tokens.sum(1), cells, 100.0),
            ('content', scored.per_image(scored.maps.count_tokens(thresholds, content_only=True)).sum(1), content_cells,
             100 * content_cells.sum().item() / total)]
    rows += [(side, tokens[:, scale], cells, 100 * (tokens[:, scale].sum().item() << 2 * scale) / total)
             for scale, side in enumerate(sides)]
    for name, kept, of_cells, area in rows:
        fractions = 100 * kept.double() / of_cells
        numbers = [100 * kept.sum().item() / of_cells.sum().item(), *np.percentile(fractions, [5, 50, 95]), area]
        lines.append(f'{name:8}' + ''.join(f'{number:8.1f}' for number in numbers))
    lines.append('content: without padding, in % of the cells that hold a pixel of the image')
    return '\n'.join(lines)


def draw(path: Path, scored: Scored, thresholds: tuple[float, ...], family: Family, target: float | None,
         content: bool) -> None:
    """Left: the kept fractions' cumulative distribution over the images.  Right: their mean at other thresholds."""
    with from_extra('tools'):
        import matplotlib
        from matplotlib import pyplot
    matplotlib.use('Agg')
    maps = scored.maps
    cells = scored.per_image(maps.num_content_cells if content else maps.num_cells)
    label = 'kept tokens, % of the cells that hold content' if content else 'kept tokens, % of the cells'

    def kept(values: tuple[float, ...]) -> tuple[np.ndarray, float]:
        tokens = scored.per_image(maps.count_tokens(values, content)).sum(1)
        return (100 * tokens / cells).numpy(), (100 * tokens.sum() / cells.sum()).item()

    fractions, mean = kept(thresholds)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout='constrained')
    left.ecdf(fractions, color='#2b5fb3', label=f'{len(fractions)} images')
    left.axvline(mean, color='#c8502d', label=f'mean {mean:.1f} %')
    left.set(xlim=(0, 100), xlabel=label, ylabel='share of the images that keep no more',
             title=f'thresholds {" ".join(f"{threshold:g}" for threshold in thresholds)}')
    shown = [number for number in np.linspace(0, family.highest, 1001)
             if family.thresholds(number)[0] <= 2 * thresholds[0]]
    points = []
    for number in np.linspace(0, shown[-1], 41):
        values = family.thresholds(number)
        all_kept, average = kept(values)
        points.append((values[0], *np.percentile(all_kept, [5, 95]), average))
    finest, low, high, average = np.array(sorted(points)).T
    right.fill_between(finest, low, high, color='#2b5fb3', alpha=0.18, lw=0, label='5 % to 95 % of the images')
    right.plot(finest, average, color='#2b5fb3', label='all images together')
    right.plot(thresholds[0], mean, 'o', color='#c8502d', label='these thresholds')
    right.set(ylim=(0, 101), xlabel='finest threshold', ylabel=label, title=family.name)
    if target is not None:
        left.axvline(100 * target, color='black', ls=':', label=f'target {100 * target:g} %')
        right.axhline(100 * target, color='black', ls=':')
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    save_figure(figure, path, dpi=110)
    pyplot.close(figure)
