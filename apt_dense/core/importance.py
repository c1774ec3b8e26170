"""Importance of image patches at several sizes: entropy, Laplacian response, upsampling error.

Every scorer takes an image of shape (B, 3, H, W), RGB in 0..255, any dtype, and returns a list of ``num_scales``
float32 maps, fine to coarse.  Map s has shape (B, ceil(H / P), ceil(W / P)) with P = patch_size * 2**s: one score for
each patch.  A low score means a smooth patch, which may be merged.

``check=False`` leaves out the check for pixels that are not finite, which waits for a GPU: their patches' scores are
then arbitrary.

Source: APT (arXiv 2510.18091, section 3.1) and the three measures of its public classification code.
"""
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA_WEIGHTS = (0.2989, 0.5870, 0.1140)
UPSAMPLING_FACTORS = {16: 0.5, 32: 0.5, 64: 0.25, 128: 0.25}  # side of the patch in pixels -> the public code's factor
INCOMPLETE_PATCH_ENTROPY = 1e6  # of a patch that reaches over the border: above every threshold, never merged


def patch_entropy(image: Tensor, patch_size: int = 16, num_scales: int = 4, bins: int = 512, *,
                  check: bool = True) -> list[Tensor]:
    """Shannon entropy, in bits, of the grey-value histogram of each patch.

    Args:
        image: (B, 3, H, W), RGB in 0..255.
        patch_size: side of the finest patch in pixels.
        num_scales: number of maps; patch sides double from one to the next.
        bins: equal bins over [0, 255]; 255 falls into the last one.
        check: see the module docstring.

    Returns:
        ``num_scales`` maps, fine to coarse (see the module docstring).  Incomplete patches at the right and bottom
        border score 1e6.

    Raises:
        ValueError: if the image is not (B, 3, H, W) or holds a NaN or an infinity.

    Source: the vectorised entropy of the public code's data pipeline, which the published thresholds belong to.  The
    histogram is counted once, at the finest scale; those of the coarser scales are 2 x 2 sums of it.
    """
    image = checked_image(image, check)
    batch, _, height_px, width_px = image.shape
    rows, cols = height_px // patch_size, width_px // patch_size
    counts = _histogram(luma(image[..., :rows * patch_size, :cols * patch_size]), patch_size, bins)
    maps = []
    for scale in range(num_scales):
        side_px = patch_size << scale
        scores = _entropy_of_counts(counts, side_px**2)
        below, right = (-(-side // side_px) - complete
                        for side, complete in zip((height_px, width_px), scores.shape[1:], strict=True))
        if below or right:
            scores = F.pad(scores, (0, right, 0, below), value=INCOMPLETE_PATCH_ENTROPY)
        maps.append(scores)
        if scale + 1 < num_scales:
            counts = _sum_2x2(counts)
    return maps


def patch_laplacian(image: Tensor, patch_size: int = 16, num_scales: int = 4, reduction: str = 'mean', *,
                    check: bool = True) -> list[Tensor]:
    """Absolute response of the 8-connected Laplacian on the 0..1 grey image, reduced over each patch.

    Args:
        image: (B, 3, H, W), RGB in 0..255; H and W at least 2 (the image is reflected at its border).
        patch_size: side of the finest patch in pixels.
        num_scales: number of maps; patch sides double from one to the next.
        reduction: 'mean', 'max' or 'std' (unbiased).
        check: see the module docstring.

    Returns:
        ``num_scales`` maps, fine to coarse.  Responses outside the image count as zero.

    Raises:
        ValueError: for a bad image (also one of less than 2 pixels a side) or an unknown reduction.

    Source: the Laplacian measure of the public code.
    """
    if reduction not in ('mean', 'max', 'std'):
        raise ValueError(f"reduction={reduction!r} is not one of 'mean', 'max', 'std'")
    image = checked_image(image, check)
    if min(image.shape[-2:]) < 2:
        raise ValueError(f'patch_laplacian needs an image of at least 2 x 2 pixels, got {tuple(image.shape[-2:])}: '
                         'pad it first')
    grey = luma(image)[:, None] / 255
    # Nine times the pixel less the sum around it.  A convolution, which TF32 would round on a GPU, chose other patches
    # there than on a CPU, and is slower.
    sums = F.avg_pool2d(F.pad(grey, (1, 1, 1, 1), mode='reflect'), 3, 1, divisor_override=1)
    response = grey.mul_(9).sub_(sums).abs_()
    return [reduce_patches(response, patch_size << scale, reduction) for scale in range(num_scales)]


def patch_upsampling_error(image: Tensor, patch_size: int = 16, num_scales: int = 4,
                           factors: Mapping[int, float] | Sequence[float] = UPSAMPLING_FACTORS, *,
                           check: bool = True) -> list[Tensor]:
    """Mean squared error of the 0..1 RGB image after down- and upsampling, over each patch.

    Args:
        image: (B, 3, H, W), RGB in 0..255.
        patch_size: side of the finest patch in pixels.
        num_scales: number of maps; patch sides double from one to the next.
        factors: side of a patch in pixels -> its downsampling factor.  A side that is not named takes the factor of
            the one that is nearest in ratio.  So a patch's score does not depend on which other sizes are scored.
            (Or a sequence: one factor for each map, fine to coarse; the last one serves all coarser maps.)
        check: see the module docstring.

    Returns:
        ``num_scales`` maps, fine to coarse.  The error outside the image counts as zero.

    Raises:
        ValueError: for a bad image, or factors that are empty or not in (0, 1].

    Source: the upsampling measure of the public code (bilinear both ways, align_corners False, no antialias).
    """
    values = tuple(factors.values() if isinstance(factors, Mapping) else factors)
    if not values or not all(0 < factor <= 1 for factor in values):
        raise ValueError(f'factors={values} must be one or more numbers in (0, 1]')
    image = checked_image(image, check) / 255
    maps, errors = [], {}
    for scale in range(num_scales):
        side_px = patch_size << scale
        by_side = isinstance(factors, Mapping)
        factor = factor_of_side(factors, side_px) if by_side else factors[min(scale, len(factors) - 1)]
        if factor not in errors:
            errors[factor] = upsampling_error(image, factor)
        maps.append(reduce_patches(errors[factor], side_px, 'mean'))
    return maps


def patch_random(image: Tensor, patch_size: int = 16, num_scales: int = 4, *, check: bool = True) -> list[Tensor]:
    """Random numbers in (0, 1], by which comparisons ask whether a score says anything.  Waits for the device.

    They follow from the image's pixels alone: the same image gets the same, whatever its batch neighbours.

    Args, returns and errors: as ``patch_entropy``.
    """
    image = checked_image(image, check)
    height_px, width_px = image.shape[-2:]
    seeds = image.double().sum((1, 2, 3)).nan_to_num(0, 0, 0).tolist()
    maps = []
    for scale in range(num_scales):
        side_px = patch_size << scale
        shape = -(-height_px // side_px), -(-width_px // side_px)
        generators = [torch.Generator().manual_seed(int(seed) + side_px) for seed in seeds]
        scores = torch.stack([1 - torch.rand(shape, generator=generator, device='cpu') for generator in generators])
        maps.append(scores.to(image.device))
    return maps


def checked_image(image: Tensor, check: bool) -> Tensor:
    """Return the image in float32; raise ValueError for a wrong shape or, if wanted, for non-finite pixels."""
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise ValueError(f'image has shape {tuple(image.shape)}, wanted (B, 3, H, W) with no empty side')
    image = image.float()
    if check:
        check_finite(image)
    return image


def may_be_finite(image: Tensor) -> Tensor:
    """True, as a tensor without shape, only if all pixels are finite.  (False also if their sum is too large.)"""
    return image.sum(dtype=torch.float32).isfinite()  # one pass, and no mask of the image's size


def check_finite(image: Tensor) -> None:
    """Raise ValueError, naming the images, if a batch (B, ...) holds a NaN or an infinity.  Waits for the device."""
    if may_be_finite(image):
        return
    bad = [i for i, finite in enumerate(torch.isfinite(image).flatten(1).all(1).tolist()) if not finite]
    if bad:
        raise ValueError(f'NaN or infinite pixels in image(s) {bad} of the batch: check the data and the normalisation')


def luma(image: Tensor) -> Tensor:
    """RGB (B, 3, H, W) -> grey (B, H, W), same range."""
    red, green, blue = image.unbind(1)
    return (LUMA_WEIGHTS[0] * red).add_(LUMA_WEIGHTS[1] * green).add_(LUMA_WEIGHTS[2] * blue)


def _histogram(grey: Tensor, patch_size: int, bins: int) -> Tensor:
    """Grey (B, H, W) in 0..255, sides multiples of the patch -> counts (B, H / p, W / p, bins), float32.

    Overwrites ``grey``.
    """
    batch, height_px, width_px = grey.shape
    rows, cols = height_px // patch_size, width_px // patch_size
    values = grey.mul_(bins).div_(255).long().clamp_(0, bins - 1)
    first_bins = torch.arange(0, batch * rows * cols * bins, bins, device=grey.device).view(batch, rows, 1, cols, 1)
    values = values.view(batch, rows, patch_size, cols, patch_size).add_(first_bins)
    counts = grey.new_zeros(batch * rows * cols * bins)
    counts.scatter_add_(0, values.flatten(), counts.new_ones(()).expand(values.numel()))
    return counts.view(batch, rows, cols, bins)


def _sum_2x2(counts: Tensor) -> Tensor:
    """Counts (B, h, w, bins) -> (B, h // 2, w // 2, bins): the histograms of the patches twice as large."""
    batch, rows, cols, bins = counts.shape
    whole = counts[:, :rows // 2 * 2, :cols // 2 * 2]
    return whole.reshape(batch, rows // 2, 2, cols // 2, 2, bins).sum((2, 4))


def _entropy_of_counts(counts: Tensor, num_pixels: int) -> Tensor:
    """Counts (..., bins) of num_pixels values -> bits: log2 n - sum(c log2 c) / n, exactly 0 for one full bin."""
    terms = counts * counts.clamp(min=1).log2_()
    return (math.log2(num_pixels) - terms.sum(-1) / num_pixels).clamp_(min=0)


def factor_of_side(factors: Mapping[int, float], side_px: int) -> float:
    """The factor of the side that is nearest in ratio."""
    return factors[min(factors, key=lambda side: abs(math.log(side / side_px)))]


def upsampling_error(image: Tensor, factor: float) -> Tensor:
    """(B, C, H, W) -> squared error (B, 1, H, W), mean over the channels."""
    size = image.shape[-2:]
    small_size = [max(1, int(side * factor)) for side in size]
    planes = image.flatten(0, 1)[:, None]  # with one channel torch resizes four times as fast on a CPU
    small = F.interpolate(planes, size=small_size, mode='bilinear', align_corners=False)
    error = F.interpolate(small, size=size, mode='bilinear', align_corners=False).sub_(planes).square_()
    return error.view(image.shape).mean(1, True)


def reduce_patches(values: Tensor, side_px: int, reduction: str) -> Tensor:
    """(B, 1, H, W) -> (B, ceil(H / side), ceil(W / side)), zero-padded at the right and bottom."""
    height_px, width_px = values.shape[-2:]
    values = F.pad(values, (0, -width_px % side_px, 0, -height_px % side_px))
    if reduction == 'mean':
        return F.avg_pool2d(values, side_px)[:, 0]
    if reduction == 'max':
        return F.max_pool2d(values, side_px)[:, 0]
    rows, cols = values.shape[-2] // side_px, values.shape[-1] // side_px
    return values.view(-1, rows, side_px, cols, side_px).transpose(2, 3).flatten(3).std(-1)
