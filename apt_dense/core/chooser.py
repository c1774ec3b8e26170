"""The choice of patches: a normalised image in, the layout of its tokens out.  Nothing here is trained."""
import math
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_dense.core.arguments import check_arguments, check_choice, is_number
from apt_dense.core.importance import check_finite, may_be_finite
from apt_dense.core.layout import TokenLayout
from apt_dense.core.normalisation import IMAGENET_MEAN, IMAGENET_STD
from apt_dense.core.order import check_grid, padding_remedy
from apt_dense.core.quadtree import check_thresholds, fit_budgets, select_scales, share_budget
from apt_dense.core.scorers import get_scorer, warn_of_thresholds

BUDGETS = ('image', 'batch')


class PatchChooser:
    """Chooses the patches of normalised images (B, 3, H, W), by scores and thresholds.

    Every model, tool and benchmark asks one of these, so that all of them see the same patches.  It has no parameters,
    and works on whatever device its input is on.

    Args:
        num_scales: S; the largest patch is 2**(S - 1) base patches a side.
        thresholds: S - 1 numbers, fine to coarse: a patch whose score is below its scale's threshold is kept whole.
        scorer: a name of ``scorers.SCORERS``.
        patch_size: side of a base patch in pixels.
        window_size: cells a side of a window, 0 where all attention is global.
        num_prefix: rows before each image's patches: its class token and registers.
        max_tokens: the most tokens, prefix rows not counted, of one image or of one batch (``max_tokens_per``: 'image'
            or 'batch').  Where there are more, thresholds are raised image by image, see ``fit_budgets`` and
            ``share_budget``: no busy image costs more memory or time than that.  None sets no limit.
        img_mean, img_std: what the input was normalised with, three numbers each, to restore 0..255; RGB.
        compiled: fuse the scorer by torch.compile.

    Attributes:
        last_num_raised: images of the last batch whose thresholds ``max_tokens`` raised.

    Raises:
        ValueError: for an argument that is unknown or does not fit the others.

    Source: APT (arXiv 2510.18091, section 3.1).
    """

    def __init__(self, num_scales: int = 1, thresholds: Sequence[float] = (), scorer: str = 'entropy', *,
                 patch_size: int = 16, window_size: int = 0, num_prefix: int = 0,
                 max_tokens: int | None = None, max_tokens_per: str = 'image',
                 img_mean: Sequence[float] = IMAGENET_MEAN, img_std: Sequence[float] = IMAGENET_STD,
                 compiled: bool = False):
        check_arguments(num_scales=num_scales, patch_size=patch_size, window_size=window_size, num_prefix=num_prefix,
                        max_tokens=max_tokens, compiled=compiled)
        check_choice('max_tokens_per', max_tokens_per, BUDGETS)
        self.num_scales = num_scales
        self.patch_size = patch_size
        self.window_size = window_size
        self.num_prefix = num_prefix
        self.scorer = get_scorer(scorer, compiled)
        self._scorer_name = scorer
        self.thresholds = thresholds
        self._check_budget(max_tokens)
        self.max_tokens = max_tokens
        self.max_tokens_per = max_tokens_per
        self.img_mean, self.img_std = _channels('img_mean', img_mean), _channels('img_std', img_std)
        if min(self.img_std) <= 0:
            raise ValueError(f'img_std={self.img_std} must be positive: give the deviations in 0..255')
        self.last_num_raised = 0

    @property
    def thresholds(self) -> tuple[float, ...]:
        """S - 1 numbers, fine to coarse."""
        return self._thresholds

    @thresholds.setter
    def thresholds(self, values: Sequence[float]) -> None:
        check_thresholds(values, self.num_scales)
        warn_of_thresholds(self._scorer_name, values)
        self._thresholds = tuple(values)

    @property
    def size_divisor_px(self) -> int:
        """What the sides of an input must be multiples of: the window's side, or the largest patch's; in pixels."""
        return (self.window_size or 2**(self.num_scales - 1)) * self.patch_size

    def pad(self, x: Tensor) -> Tensor:
        """Pad (B, 3, H, W) at the bottom and right with zeros, the mean colour, to sides that ``layout`` takes."""
        height_px, width_px = x.shape[2:]
        return F.pad(x, (0, -width_px % self.size_divisor_px, 0, -height_px % self.size_divisor_px))

    @torch.no_grad()
    def layout(self, x: Tensor) -> TokenLayout:
        """Choose the patches of a batch.  Waits for the device once.

        Args:
            x: (B, 3, H, W), normalised; sides in multiples of ``size_divisor_px``.

        Returns:
            The layout of H / patch_size x W / patch_size cells.

        Raises:
            ValueError: for another shape, or a pixel that is not finite.
        """
        self.check_shape(x)
        if self.num_scales == 1:
            check_finite(x)
            batch_size, _, height_px, width_px = x.shape
            return TokenLayout.dense(batch_size, height_px // self.patch_size, width_px // self.patch_size,
                                     self.window_size, 1, self.num_prefix, x.device)
        image = self.restore(x)
        scores = self._score(image)
        try:
            # A bad pixel makes every scale a bad one: the one wait, for the number of tokens, finds both.
            return self._choose(scores, ~may_be_finite(image))
        except ValueError:
            check_finite(image)
            return self.choose(scores)  # finite, only too large to be summed

    @torch.no_grad()
    def scores(self, x: Tensor) -> list[Tensor]:
        """Score the patches that may be merged: all scales but the finest.

        Args:
            x: as for ``layout``.

        Returns:
            S - 1 float32 maps (B, H / (2**s * patch_size), W / (2**s * patch_size)), s = 1 to S - 1, fine to coarse.

        Raises:
            ValueError: as ``layout``.
        """
        self.check_shape(x)
        image = self.restore(x)
        check_finite(image)
        return self._score(image)

    @torch.no_grad()
    def choose(self, scores: Sequence[Tensor]) -> TokenLayout:
        """The layout that follows from the maps of ``scores``, with this object's thresholds and budget."""
        return self._choose(scores, None)

    def restore(self, x: Tensor) -> Tensor:
        """Undo the normalisation of (B, 3, H, W): float32, 0..255.

        Values are rounded to what the input's precision can tell, so that an image of whole numbers comes back exactly:
        the entropy's bins are half a grey level wide.

        Raises:
            ValueError: if the input's precision cannot tell the grey levels of this normalisation apart.
        """
        if not _can_restore(x.dtype, self.img_mean, self.img_std):
            raise ValueError(f'the input is {x.dtype}, in which neighbouring grey levels that were normalised with '
                             f'img_mean={self.img_mean}, img_std={self.img_std} are the same number, so that other '
                             'patches would be chosen: give the image in float32 (under torch.autocast, say), the '
                             'weights may stay as they are')
        return _restore(x, self.img_mean, self.img_std)

    def _score(self, image: Tensor) -> list[Tensor]:
        with torch.autocast(image.device.type, enabled=False):
            return self.scorer(image, self.patch_size * 2, self.num_scales - 1, check=False) if (
                self.num_scales > 1) else []

    def _choose(self, scores: Sequence[Tensor], bad: Tensor | None) -> TokenLayout:
        """See ``choose``; ``bad``, one bool on the device, makes it raise ValueError."""
        if len(scores) != self.num_scales - 1 or not scores:
            raise ValueError(f'got {len(scores)} score maps for num_scales={self.num_scales}: nothing can be chosen '
                             'with one scale, and S scales have S - 1 maps')
        arguments = (self.window_size, self.num_scales, self.num_prefix, False)
        batch_size, height, width = scores[0].shape
        # select_scales reads only the finest map's shape.
        maps = [scores[0].new_empty(()).expand(batch_size, height * 2, width * 2), *scores]
        scales = select_scales(maps, self.thresholds)
        layout = TokenLayout.from_scales(scales if bad is None else scales.masked_fill(bad, -1), *arguments)
        budgets = self._budgets([length - self.num_prefix for length in layout.images.lengths])
        if not self.last_num_raised:
            return layout
        return TokenLayout.from_scales(fit_budgets(maps, self.thresholds, budgets), *arguments)

    def _budgets(self, counts: list[int]) -> list[int]:
        """The most tokens that each image may have, given how many it has; counts those that have too many."""
        budgets = counts
        if self.max_tokens is not None:
            budgets = (share_budget(counts, self.max_tokens) if self.max_tokens_per == 'batch'
                       else [self.max_tokens] * len(counts))
        self.last_num_raised = sum(count > budget for count, budget in zip(counts, budgets, strict=True))
        return budgets

    def check_shape(self, x: Tensor) -> None:
        """Raise ValueError for a shape that ``layout`` does not take."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f'input is {got}, wanted normalised images, a floating-point tensor (B, 3, H, W): '
                             'subtract img_mean from 0..255 and divide by img_std')
        shape = tuple(x.shape)
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f'input has shape {shape}, wanted (B, 3, H, W)')
        if 0 in shape:
            what = 'an image without pixels' if shape[0] else 'an empty batch, give it one image at least'
            raise ValueError(f'input has shape {shape}: {what}')
        height_px, width_px = x.shape[2:]
        if height_px % self.patch_size or width_px % self.patch_size:
            raise ValueError(f'input is {height_px}x{width_px} px, wanted a multiple of patch_size={self.patch_size}: '
                             f'{padding_remedy(height_px, width_px, self.size_divisor_px)}')
        check_grid(height_px // self.patch_size, width_px // self.patch_size, self.window_size, self.num_scales,
                   self.patch_size)

    def _check_budget(self, max_tokens: int | None) -> None:
        """Raise ValueError for a budget that can't be kept."""
        if max_tokens is None:
            return
        if not self.thresholds or not all(math.isfinite(threshold) for threshold in self.thresholds):
            raise ValueError(f'max_tokens={max_tokens} raises thresholds, and they are {self.thresholds}: set '
                             'num_scales > 1 and finite thresholds')


def _channels(name: str, values: Sequence[float]) -> tuple[float, ...]:
    """Three finite numbers, or ValueError."""
    given = values.tolist() if isinstance(values, Tensor) else values
    given = tuple(given) if isinstance(given, Iterable) else ()
    if len(given) != 3 or not all(map(is_number, given)):
        raise ValueError(f'{name}={values!r} must be three finite numbers, for red, green and blue in 0..255')
    return tuple(map(float, given))


def _restore(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    steps = 1024 if x.dtype in (torch.float32, torch.float64) else 1
    scale, shift = _factors(tuple(std), steps, x.device), _factors(tuple(mean), steps, x.device)
    return x.to(torch.float32, copy=True).mul_(scale).add_(shift).round_().div_(steps)


@lru_cache(maxsize=32)
def _factors(values: tuple[float, ...], steps: int, device: torch.device) -> Tensor:
    """Three numbers times the steps, float32 (3, 1, 1), sent to the device once."""
    return torch.tensor([value * steps for value in values], device=device)[:, None, None]


@cache
def _can_restore(dtype: torch.dtype, mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """True if all 256 grey levels of each channel survive in this precision."""
    levels = torch.arange(256, dtype=torch.float32).expand(1, 3, 1, 256)
    mean_std = [torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std)]
    return torch.equal(_restore(((levels - mean_std[0]) / mean_std[1]).to(dtype), mean, std), levels)
