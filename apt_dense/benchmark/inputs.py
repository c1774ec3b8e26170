"""Images for the benchmark: synthetic ones that keep a wanted fraction of the tokens, and photographs."""
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_dense.core.normalisation import IMAGENET_MEAN, IMAGENET_STD
from apt_dense.core.order import check_grid

# Entropies of a synthetic image: 0 over a patch to be merged, at least 2 bits over any other.
SYNTHETIC_THRESHOLD = 1.0


def synthetic_scales(kept: float, height: int, width: int, num_scales: int = 4, seed: int = 0) -> Tensor:
    """A scale map with the wanted number of tokens, as uneven as that of a photograph.

    Patches merge in the order of a random field that is smooth over the image, with noise: some regions hold coarse
    patches only, others fine ones only, others a mixture, and windows hold very different numbers of tokens.

    Args:
        kept: wanted tokens over cells.  Every merge of four patches saves three tokens, so the count is right to 1.5.
        height, width: the grid of cells, multiples of the root.
        num_scales: S.
        seed: of the field.

    Returns:
        (height, width) int64.

    Raises:
        ValueError: if the grid is not whole roots, so few tokens are wanted that even the largest patches are too many,
            or more than there are cells.
    """
    check_grid(height, width, 0, num_scales)
    cells = height * width
    merges = round((1 - kept) * cells / 3)
    most = (cells - (cells >> 2 * (num_scales - 1))) // 3
    if not 0 <= merges <= most:
        raise ValueError(f'kept={kept} of {cells} cells: with num_scales={num_scales} choose from '
                         f'{1 - 3 * most / cells:.4f} to 1')
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, max(2, height // 12), max(2, width // 12), generator=generator)
    field = F.interpolate(coarse, size=(height // 2, width // 2), mode='bicubic', align_corners=False)[0, 0]
    # When each square merges, scale by scale: always after the four squares inside it.
    turns = [field + 0.3 * torch.randn(field.shape, generator=generator)]
    for _ in range(num_scales - 2):
        turns.append(F.max_pool2d(turns[-1][None], 2)[0] + 0.1)
    first = torch.cat([turn.flatten() for turn in turns]).argsort(stable=True)[:merges]
    merged = torch.zeros(sum(turn.numel() for turn in turns), dtype=torch.bool)
    merged[first] = True
    scales = torch.zeros(height, width, dtype=torch.int64)
    for scale, chosen in enumerate(merged.split([turn.numel() for turn in turns]), start=1):
        side = 2**scale
        chosen = chosen.view(height // side, width // side)
        scales[chosen.repeat_interleave(side, 0).repeat_interleave(side, 1)] = scale
    return scales


def synthetic_image(scales: Tensor, patch_size: int = 16, seed: int = 0) -> Tensor:
    """Scale map (H, W) -> grey image (3, H * patch_size, W * patch_size) in 0..255, whole numbers, float32.

    Base patches hold noise, coarser ones one grey value that differs from their neighbours': with thresholds of
    ``SYNTHETIC_THRESHOLD`` the entropy gives the scale map back.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, cols = (torch.arange(side) for side in scales.shape)
    part = ((rows[:, None] >> scales) & 1) * 2 + ((cols[None] >> scales) & 1)  # which quarter of the next larger square
    grey = (40 + 55 * part).float().repeat_interleave(patch_size, 0).repeat_interleave(patch_size, 1)
    noise = torch.randint(0, 256, grey.shape, generator=generator).float()
    fine = (scales == 0).repeat_interleave(patch_size, 0).repeat_interleave(patch_size, 1)
    return grey.where(~fine, noise).expand(3, -1, -1)


def normalise(image: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """(..., 3, H, W) in 0..255 -> normalised."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return (image - mean) / std


def build_batch(img_size: int, kept: Sequence[float] = (), photos: Sequence[str | Path] = (), num_scales: int = 4,
                patch_size: int = 16, mean: Sequence[float] = IMAGENET_MEAN,
                std: Sequence[float] = IMAGENET_STD, first_seed: int = 0) -> Tensor:
    """One image for each of ``photos``, or else for each kept fraction of ``kept``: (B, 3, S, S), normalised.

    Synthetic images are of the seeds from ``first_seed`` on.
    Photographs are as a detector sees them: the longest side resized to S, padded after normalisation.

    Raises:
        ValueError: if a file cannot be read as an image, or a fraction cannot be reached.
    """
    if photos:
        from apt_dense.calibration.images import load_image, resize_longest, to_input  # takes more than torch
        return torch.cat([to_input(resize_longest(load_image(path), img_size, 'pillow'), img_size, mean, std)
                          for path in photos])
    side = img_size // patch_size
    return normalise(torch.stack([
        synthetic_image(synthetic_scales(fraction, side, side, num_scales, seed), patch_size, seed)
        for seed, fraction in enumerate(kept, first_seed)
    ]), mean, std)
