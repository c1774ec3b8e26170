"""Search for thresholds: score maps of many images in, thresholds for a wanted number of tokens out.

The score maps of the merged scales (patches of 2 to 2**(S - 1) cells a side) say everything about the tokens of an
image, at any thresholds.  They are small (12 KiB for 1536 px and S = 4): an image is scored once and then forgotten.
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apt_dense.core.quadtree import check_thresholds, fit_budgets

STACK_INPUTS = 512  # inputs of one shape that are counted at once
MAX_QUANTILE_SCORES = 2**22  # of a scale; of more, every n-th is looked at
DIGITS = 4  # significant digits of the thresholds that are found
SMALLEST = 2.0**-40  # over the largest, of the numbers that are searched: upsampling errors span six decimal places
BISECTIONS = 26


class ScoreMaps:
    """Score maps of many inputs, of one shape or several.

    An input is what the backbone gets at once: an image, or one window of slide inference.

    Args:
        num_scales: S.
        max_tokens: the budget of an input, see ``PatchChooser``.

    Raises:
        ValueError: if S is less than 2.
    """

    def __init__(self, num_scales: int, max_tokens: int | None = None):
        if num_scales < 2:
            raise ValueError(f'num_scales={num_scales} leaves nothing to merge: use 2 or more')
        self.num_scales = num_scales
        self.max_tokens = max_tokens
        self.num_inputs = 0
        self._content: list[tuple[int, int]] = []  # rows and columns of cells, of each input
        self._stacks: list[tuple[list[int], list[Tensor]]] = []  # indexes, and for each scale (N, H, W)
        self._pending: dict[tuple[int, ...], list[tuple[int, Sequence[Tensor]]]] = {}  # shape -> index, maps

    def add(self, maps: Sequence[Tensor], content_cells: tuple[int, int] | None = None) -> None:
        """Add the maps of one input.

        Args:
            maps: S - 1 maps (H / 2**s, W / 2**s), s = 1 to S - 1, fine to coarse, of a grid of H x W cells
                (``PatchChooser.scores``).
            content_cells: rows and columns of cells, at the top left, that are no padding; by default all.

        Raises:
            ValueError: if there are not S - 1 maps, or a map is not half of the one before it.
        """
        if len(maps) != self.num_scales - 1:
            raise ValueError(f'got {len(maps)} score maps for num_scales={self.num_scales}, wanted '
                             f'{self.num_scales - 1}: those of the merged scales')
        shape = tuple(maps[-1].shape)
        for index, scores in enumerate(maps):
            wanted = tuple(side << len(maps) - 1 - index for side in shape)
            if tuple(scores.shape) != wanted:
                raise ValueError(f'score map {index} has shape {tuple(scores.shape)}, wanted {wanted}: half of the map '
                                 'before it; pad the image to a multiple of the largest patch')
        grid = tuple(2 * side for side in maps[0].shape)
        content_cells = content_cells or grid
        if not all(0 < content <= side for content, side in zip(content_cells, grid, strict=True)):
            raise ValueError(f'content_cells={content_cells} is not within the grid {grid}')
        self._content.append(content_cells)
        pending = self._pending.setdefault(shape, [])
        pending.append((self.num_inputs, maps))
        self.num_inputs += 1
        if len(pending) == STACK_INPUTS:
            self._stack(shape)

    def _stack(self, shape: tuple[int, ...]) -> None:
        indexes, maps = zip(*self._pending.pop(shape), strict=True)
        self._stacks.append((list(indexes), [torch.stack(scores) for scores in zip(*maps, strict=True)]))

    def stacks(self) -> list[tuple[list[int], list[Tensor]]]:
        """The maps of all inputs, by shape: (indexes of n inputs, S - 1 maps (n, H / 2**s, W / 2**s))."""
        for shape in list(self._pending):
            self._stack(shape)
        if not self._stacks:
            raise ValueError('no image was scored: nothing to calibrate with')
        return self._stacks

    @property
    def num_content_cells(self) -> Tensor:
        """(N,) int64: the cells of each input that are no padding."""
        return torch.tensor(self._content).prod(1)

    @property
    def num_cells(self) -> Tensor:
        """(N,) int64: the cells of each input, in the order of adding: its tokens in the dense model."""
        cells = torch.zeros(self.num_inputs, dtype=torch.int64)
        for indexes, maps in self.stacks():
            cells[indexes] = 4 * maps[0][0].numel()
        return cells

    @property
    def max_score(self) -> float:
        """The highest score of a patch."""
        return max(scores.max().item() for _, maps in self.stacks() for scores in maps)

    def count_tokens(self, thresholds: Sequence[float], content_only: bool = False) -> Tensor:
        """(N, S) int64: each input's tokens of each scale, fine to coarse, in the order of adding.

        The same numbers as a ``PatchChooser`` with these thresholds and budget gives, without class tokens.

        Args:
            thresholds: S - 1 numbers, fine to coarse.
            content_only: leave out tokens that lie in the padding.  (One that covers content and padding counts.)

        Raises:
            ValueError: if they are not S - 1 numbers.
        """
        check_thresholds(thresholds, self.num_scales)
        counts = torch.zeros(self.num_inputs, self.num_scales, dtype=torch.int64)
        content = torch.tensor(self._content)
        for indexes, maps in self.stacks():
            grid = (torch.tensor(maps[0].shape[1:]) * 2).expand(len(indexes), 2)
            limits = content[indexes] if content_only else grid
            counts[indexes] = _count_tokens(maps, thresholds, limits)
            if self.max_tokens is not None:
                over = (_count_tokens(maps, thresholds, grid).sum(1) > self.max_tokens).nonzero()[:, 0]
                if len(over):
                    counts[torch.tensor(indexes)[over]] = _count_fitted(
                        [scores[over] for scores in maps], thresholds, self.max_tokens, limits[over])
        return counts

    def positive_scores(self) -> list[Tensor]:
        """S - 1 sorted tensors: each merged scale's scores above 0, at most 2**22 of them, evenly picked.

        Constant patches (padding, say) score 0 and merge at any threshold above: they do not say where to cut.
        """
        result = []
        for scale in range(self.num_scales - 1):
            parts = [maps[scale].flatten() for _, maps in self.stacks()]
            step = -(-sum(part.numel() for part in parts) // MAX_QUANTILE_SCORES)
            scores = torch.cat([part[::step] for part in parts])
            result.append(scores[scores > 0].sort().values)
        return result


def _count_tokens(maps: Sequence[Tensor], thresholds: Sequence[float], limits: Tensor) -> Tensor:
    """S - 1 maps (n, H / 2**s, W / 2**s) -> (n, S) tokens; a coarser patch wins, base patches are the rest.

    Args:
        limits: (n, 2) rows and columns of cells; tokens whose top-left cell is beyond do not count.
    """
    num_scales = len(maps) + 1
    counts = torch.zeros(len(maps[0]), num_scales, dtype=torch.int64)
    covered = torch.zeros_like(maps[-1], dtype=torch.bool)
    for scale in range(num_scales - 1, 0, -1):
        merged = (maps[scale - 1] < thresholds[scale - 1]) & ~covered
        counts[:, scale] = (merged & _within(merged.shape, limits, scale)).sum((1, 2))
        covered = (covered | merged).repeat_interleave(2, 1).repeat_interleave(2, 2)
    counts[:, 0] = (~covered & _within(covered.shape, limits, 0)).sum((1, 2))
    return counts


def _count_fitted(maps: Sequence[Tensor], thresholds: Sequence[float], max_tokens: int, limits: Tensor) -> Tensor:
    """``_count_tokens`` of inputs whose thresholds are raised until they keep the budget."""
    count, height, width = maps[0].shape
    base = maps[0].new_empty(()).expand(count, 2 * height, 2 * width)
    scales = fit_budgets([base, *maps], thresholds, [max_tokens] * count)
    result = []
    for scale in range(len(maps) + 1):
        corners = scales[:, ::1 << scale, ::1 << scale] == scale
        result.append((corners & _within(corners.shape, limits, scale)).sum((1, 2)))
    return torch.stack(result, 1)


def _within(shape: tuple[int, ...], limits: Tensor, scale: int) -> Tensor:
    """(n, h, w) bool: True where the top-left cell of a patch of this scale is within the limits (n, 2)."""
    rows, cols = (torch.arange(side) << scale for side in shape[1:])
    return (rows[None, :, None] < limits[:, 0, None, None]) & (cols[None, None, :] < limits[:, 1, None, None])


@dataclass(frozen=True)
class Family:
    """Thresholds as a function of one number: the larger it is, the more is merged.

    Attributes:
        thresholds: number -> S - 1 thresholds, fine to coarse and not increasing.
        highest: the largest number that makes a difference.
        name: what holds the thresholds together, for people.
    """
    thresholds: Callable[[float], tuple[float, ...]]
    highest: float
    name: str


def ratio_family(scores: ScoreMaps, ratios: Sequence[float]) -> Family:
    """Thresholds in fixed ratios; the number is the finest one.

    Args:
        ratios: of each threshold over that of the next finer scale, S - 2 numbers in (0, 1], or one for all.

    Raises:
        ValueError: for another number of ratios, or one outside (0, 1]: a patch twice as large must not be allowed more
            detail.
    """
    wanted = scores.num_scales - 2
    ratios = tuple(ratios) * wanted if len(ratios) == 1 else tuple(ratios)
    if len(ratios) != wanted:
        raise ValueError(f'got {len(ratios)} ratios {ratios} for num_scales={scores.num_scales}: give one, or {wanted}')
    if not all(0 < ratio <= 1 for ratio in ratios):
        raise ValueError(f'ratios {ratios} must be in (0, 1]: thresholds must not increase from fine to coarse')
    factors = [1.0]
    for ratio in ratios:
        factors.append(factors[-1] * ratio)
    highest = 1.001 * scores.max_score / factors[-1]  # a patch is merged strictly below its threshold
    name = f'ratio {" ".join(f"{ratio:g}" for ratio in ratios)} between scales' if ratios else 'one threshold'
    return Family(lambda finest: tuple(finest * factor for factor in factors), highest, name)


def quantile_family(scores: ScoreMaps) -> Family:
    """Thresholds at one quantile of each scale's positive scores; the number is the quantile.

    A threshold that would be above that of the next finer scale is set to it.

    Raises:
        ValueError: if all patches of a scale score 0.
    """
    sorted_scores = scores.positive_scores()
    if not all(map(len, sorted_scores)):
        raise ValueError('all patches of a scale are constant: there is no quantile to choose, use a ratio')

    def thresholds(quantile: float) -> tuple[float, ...]:
        result = []
        for values in sorted_scores:
            value = values[min(int(quantile * len(values)), len(values) - 1)].item()
            result.append(min([value, *result[-1:]]))
        return tuple(result)

    return Family(thresholds, 1.0, 'equal quantile of the scores')


def find_thresholds(family: Family, measure: Callable[[tuple[float, ...]], float], target: float) -> tuple[float, ...]:
    """The least thresholds of a family at which ``measure`` is not above ``target``.

    Args:
        family: see ``ratio_family`` and ``quantile_family``.
        measure: thresholds -> kept fraction, largest number of tokens or the like; not increasing in the thresholds.
        target: the wanted value.

    Returns:
        S - 1 thresholds, fine to coarse, rounded up to four significant digits.

    Raises:
        ValueError: if the target is out of reach, naming what is within.
    """
    def rounded(number: float) -> tuple[float, ...]:
        return tuple(_round_up(threshold) for threshold in family.thresholds(number))

    low, high = family.highest * SMALLEST, family.highest
    most, least = measure(rounded(low)), measure(rounded(high))
    if not least <= target <= most:
        raise ValueError(f'target {target:g} is out of reach with {family.name}: {least:.4g} to {most:.4g} is possible '
                         '(constant patches, padding among them, are always merged)')
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if measure(rounded(middle)) <= target else (middle, high)
    return rounded(high)


def _round_up(value: float) -> float:
    """To four significant digits, up: what was merged stays merged."""
    if value <= 0:
        return value
    digits = DIGITS - 1 - math.floor(math.log10(value))
    return round(math.ceil(value * 10**digits * (1 - 1e-12)) / 10**digits, digits)
