"""Small images of known structure, and small models with random parameters."""
import torch
from torch import Tensor

from apt_dense import APTEVA02, TokenLayout
from tests.devices import drawn_on_cpu
from tests.oracle import MEAN, STD

SPLIT = 1.5  # bits: threshold between the two-colour patches of ``image_of`` and everything else


@drawn_on_cpu
def random_scales(chances: list[float], height: int, width: int, num_scales: int, seed: int = 0,
                  skipped: tuple[int, ...] = ()) -> Tensor:
    """Scale maps (B, height, width), one for each chance that a patch splits; ``skipped`` scales always split."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.zeros(len(chances), height, width, dtype=torch.int64)

    def fill(image: Tensor, chance: float, scale: int) -> None:
        if scale == 0:
            return
        if scale not in skipped and torch.rand((), generator=generator) >= chance:
            image.fill_(scale)
            return
        half = 2**(scale - 1)
        for y in (0, half):
            for x in (0, half):
                fill(image[y:y + half, x:x + half], chance, scale - 1)

    root = 2**(num_scales - 1)
    for image, chance in zip(scales, chances, strict=True):
        for y in range(0, height, root):
            for x in range(0, width, root):
                fill(image[y:y + root, x:x + root], chance, num_scales - 1)
    return scales


@drawn_on_cpu
def image_of(scales: Tensor, patch_size: int = 4, seed: int = 1) -> Tensor:
    """Scale maps (B, H, W) -> uint8 images (B, 3, H * patch_size, W * patch_size).

    Base patches hold noise and coarser ones a random pattern of two colours of their own: the entropy of a patch that
    is in the map is at most 1 bit, that of one that is not in the map (a coarser one) more than 2.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, height, width = scales.shape
    image = torch.randint(0, 256, (batch, 3, height * patch_size, width * patch_size), generator=generator)
    for i in range(batch):
        for y in range(height):
            for x in range(width):
                scale = int(scales[i, y, x])
                if scale and y % 2**scale == 0 and x % 2**scale == 0:
                    side = patch_size * 2**scale
                    pattern = torch.randint(0, 2, (side, side), generator=generator)
                    colours = torch.randint(0, 256, (3, 2), generator=generator)
                    area = image[i, :, y * patch_size:y * patch_size + side, x * patch_size:x * patch_size + side]
                    area.copy_(colours[:, pattern])
    return image.to(torch.uint8)


def normalise(image: Tensor, dtype: torch.dtype = torch.float32, mean: tuple[float, ...] = MEAN,
              std: tuple[float, ...] = STD) -> Tensor:
    """(B, 3, H, W) of 0..255 -> normalised."""
    mean, std = (torch.tensor(values, dtype=dtype, device=image.device).view(3, 1, 1) for values in (mean, std))
    return (image.to(dtype) - mean) / std


def toy_model(seed: int = 0, **arguments) -> APTEVA02:
    """An APTEVA02 in eval mode, every parameter random and large enough to matter."""
    model = APTEVA02(**arguments).eval()
    randomise(model, seed)
    return model


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Give every parameter a random value that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, device='cpu').to(parameter.device)
            if parameter.ndim == 1:
                is_norm = name.endswith('weight')
                parameter.copy_(1 + 0.3 * noise if is_norm else 0.5 * noise)
            elif name.endswith(('pos_embed', 'cls_token')):
                parameter.copy_(noise)
            else:
                parameter.copy_(noise / parameter[0].numel()**0.5)


def without_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose keys begin with the prefix, without it."""
    return {key[len(prefix):]: value for key, value in state.items() if key.startswith(prefix)}


def scales_of(layout: TokenLayout) -> Tensor:
    """Layout -> (B, H, W), the scale map."""
    return layout.expand(layout.scales[:, None].float())[:, 0].long()
