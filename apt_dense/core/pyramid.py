"""The simple feature pyramid of ViTDet: five maps from the backbone's last one."""
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from apt_dense.core.arguments import check_arguments


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def __init__(self, num_channels: int, eps: float = 1e-6):
        super().__init__(num_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Conv2dLN(nn.Conv2d):
    """Convolution without bias, then LayerNorm over the channels; the size stays."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = LayerNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class SimpleFeaturePyramid(nn.Module):
    """Strides 4, 8, 16, 32 and 64 from one map of stride 16.

    Args:
        in_channels: D, channels of the backbone's map.
        out_channels: channels of each map that comes out.

    Raises:
        ValueError: for numbers of channels that are none.

    Source: ViTDet (arXiv 2203.16527), as in EVA-02's detection code: stages simfp_2 to simfp_5 upsample by 4 and 2,
    keep, and halve by max-pooling; p6 takes every second position of p5.
    """

    def __init__(self, in_channels: int, out_channels: int = 256):
        super().__init__()
        check_arguments(in_channels=in_channels, out_channels=out_channels)
        half, quarter = in_channels // 2, in_channels // 4

        def lateral(channels: int) -> list[nn.Module]:
            return [Conv2dLN(channels, out_channels, 1), Conv2dLN(out_channels, out_channels, 3)]

        self.simfp_2 = nn.Sequential(nn.ConvTranspose2d(in_channels, half, 2, 2), LayerNorm2d(half), nn.GELU(),
                                     nn.ConvTranspose2d(half, quarter, 2, 2), *lateral(quarter))
        self.simfp_3 = nn.Sequential(nn.ConvTranspose2d(in_channels, half, 2, 2), *lateral(half))
        self.simfp_4 = nn.Sequential(*lateral(in_channels))
        self.simfp_5 = nn.Sequential(nn.MaxPool2d(2, 2), *lateral(in_channels))

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """(..., (B, D, H, W)), of which the last is used -> five (B, out_channels, h, w), fine to coarse.

        Their sides are 4, 2, 1, 1/2 and 1/4 of H and W; the last is rounded up.
        """
        x = inputs[-1]
        p2, p3, p4, p5 = self.simfp_2(x), self.simfp_3(x), self.simfp_4(x), self.simfp_5(x)
        return p2, p3, p4, p5, F.max_pool2d(p5, 1, 2)
