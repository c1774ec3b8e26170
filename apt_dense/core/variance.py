"""Scores that ask how far a patch's colours are from one colour.

As those of ``importance``: (B, 3, H, W), RGB in 0..255, in, and ``num_scales`` float32 maps, fine to coarse, out.  A
merged patch has one feature vector for all of its cells; what a dense model's features vary inside a patch goes with
what its colours vary, closer than with any other of the scores here.
"""
import torch.nn.functional as F
from torch import Tensor

from apt_dense.core.importance import checked_image
from apt_dense.core.resizing import block_side, break_even_prices


def patch_variance(image: Tensor, patch_size: int = 16, num_scales: int = 4, reduction: str = 'mean', *,
                   check: bool = True) -> list[Tensor]:
    """Squared distance of the 0..1 RGB colours from their mean over the patch; mean of the channels.

    Args:
        image: (B, 3, H, W), RGB in 0..255.  Beyond the right and bottom border it is continued by its last pixels.
        patch_size: side of the finest patch in pixels.
        num_scales: number of maps; patch sides double from one to the next.
        reduction: 'mean' over the patch, its variance; or 'max', the largest of the means over blocks of 8 px (or of
            the largest divisor of ``patch_size`` below), so that a small thing on a plain ground counts in a large
            patch too.
        check: see ``importance``.

    Returns:
        ``num_scales`` maps, fine to coarse; a patch of one colour scores exactly 0.

    Raises:
        ValueError: for a bad image or an unknown reduction.
    """
    if reduction not in ('mean', 'max'):
        raise ValueError(f"reduction={reduction!r} is not one of 'mean', 'max'")
    block_px = block_side(patch_size)
    pixels = _continued(checked_image(image, check), patch_size << num_scales - 1)
    # Levels of 0..255: whole numbers, so that the mean of equal ones is exact.
    means = F.avg_pool2d(pixels, block_px)
    distances = pixels.unflatten(3, (-1, block_px)).unflatten(2, (-1, block_px)) - means[:, :, :, None, :, None]
    inside = F.avg_pool2d(distances.square_().view(pixels.shape), block_px).mean(1, True)
    maps = []
    for scale in range(num_scales):
        blocks = (patch_size << scale) // block_px
        parts = means.unflatten(3, (-1, blocks)).unflatten(2, (-1, blocks))
        between = (parts - parts.mean((3, 5), True)).square().mean(1, True).view(inside.shape)
        pool = F.avg_pool2d if reduction == 'mean' else F.max_pool2d
        maps.append(_cropped(pool(between + inside, blocks)[:, 0] / 255**2, image, patch_size << scale))
    return maps


def patch_variance_price(image: Tensor, patch_size: int = 16, num_scales: int = 4, *, check: bool = True
                         ) -> list[Tensor]:
    """``patch_rate_distortion`` whose distortion is the variance of a patch times its cells.

    Args, returns and errors: as there.
    """
    if patch_size % 2:
        raise ValueError(f'patch_size={patch_size} cannot be halved')
    pixels = _continued(checked_image(image, check), patch_size << num_scales - 1)
    variances = patch_variance(pixels, patch_size, num_scales, check=False)
    distortions = [variance.double() * 4**(scale + 1) for scale, variance in enumerate(variances)]
    return [_cropped(price.float(), image, patch_size << scale)
            for scale, price in enumerate(break_even_prices(distortions))]


def _continued(image: Tensor, side_px: int) -> Tensor:
    """The image, continued by its last pixels to sides in multiples of ``side_px``."""
    height_px, width_px = image.shape[-2:]
    return F.pad(image, (0, -width_px % side_px, 0, -height_px % side_px), mode='replicate')


def _cropped(scores: Tensor, image: Tensor, side_px: int) -> Tensor:
    """Of the patches that hold a pixel of the image."""
    height_px, width_px = image.shape[-2:]
    return scores[:, :-(-height_px // side_px), :-(-width_px // side_px)]
