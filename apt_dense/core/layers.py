"""Layers that blocks are made of, on packed tokens."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_dense.core.layout import Runs


class SwiGLU(nn.Module):
    """w3(LayerNorm(SiLU(w1 x) * (w2 x))), with biases; (..., C) -> (..., C)."""

    def __init__(self, embed_dims: int, hidden_dims: int):
        super().__init__()
        self.w1 = nn.Linear(embed_dims, hidden_dims)
        self.w2 = nn.Linear(embed_dims, hidden_dims)
        self.ffn_ln = nn.LayerNorm(hidden_dims, eps=1e-6)
        self.w3 = nn.Linear(hidden_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


class DropPath(nn.Module):
    """Drop a residual branch for whole images: one draw an image, for all of its tokens.

    (torch's and timm's versions draw once per entry of the first axis, which here would be once per token.)
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, images: Runs) -> Tensor | None:
        """What to multiply each token of the branch by: (T, 1), 0 or 1 / (1 - rate); None for nothing."""
        if self.rate == 0 or not self.training:
            return None
        keep = 1 - self.rate
        draws = torch.rand(len(images.lengths), 1, device=images.cu_seqlens.device) < keep
        return images.spread(draws / keep)

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


def add_branch(x: Tensor, branch: Tensor, factor: Tensor | None) -> Tensor:
    """x + branch * factor, all (T, C), the factor (T, 1) as ``DropPath`` gives it; None for 1."""
    return x + branch if factor is None else x + _Scale.apply(branch, factor.to(branch.dtype))


class _Scale(torch.autograd.Function):
    """branch * factor, whose backward pass needs nothing that activation checkpointing has to compute again.

    Checkpointing recomputes a block up to the last tensor that its backward pass needs.  A plain product keeps the
    factor as such a tensor, so the MLP's last layer, a third of it, would be computed a second time to get there.
    """

    @staticmethod
    def forward(ctx, branch: Tensor, factor: Tensor) -> Tensor:
        ctx.factor = factor  # not save_for_backward: what that takes is recomputed
        return branch * factor

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None
