"""Layers that blocks are made of, on packed tokens."""
import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_dense.core.arguments import check_choice
from apt_dense.core.derived import ProductWeights, pad
from apt_dense.core.runs import Runs

ALIGNED = 16  # numbers: the width of a row of which a GPU's matrix products are fast


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), OpenAI's for CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {'gelu': nn.GELU, 'quick_gelu': QuickGELU}
MLPS = (*ACTIVATIONS, 'swiglu')


class MLP(nn.Module):
    """fc2(act(fc1 x)), with biases; (..., C) -> (..., C).

    Args:
        embed_dims: C.
        hidden_dims: channels between.
        activation: 'gelu' or 'quick_gelu'.
        keep_casts: see ``ProductWeights``.

    Raises:
        ValueError: for an unknown activation.
    """

    def __init__(self, embed_dims: int, hidden_dims: int, activation: str = 'gelu', keep_casts: bool = False):
        super().__init__()
        check_choice('activation', activation, ACTIVATIONS)
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.act = ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(hidden_dims, embed_dims)
        self.weights = ProductWeights(keep_casts) if keep_casts else None

    @property
    def last(self) -> nn.Linear:
        """The layer that ends it."""
        return self.fc2

    def forward(self, x: Tensor) -> Tensor:
        if self.weights is None:
            return self.fc2(self.act(self.fc1(x)))
        hidden, out = (functools.partial(F.linear, weight=self.weights(layer.weight), bias=self.weights(layer.bias))
                       for layer in (self.fc1, self.fc2))
        return out(self.act(hidden(x)))


class SwiGLU(nn.Module):
    """w3(LayerNorm(SiLU(w1 x) * (w2 x))), with biases; (..., C) -> (..., C).

    Args:
        embed_dims: C.
        hidden_dims: channels between.
        padded: compute with channels between up to the next multiple of 16, whose weights are 0.  The result is the
            same: SiLU(0) * 0 is 0, and LayerNorm does not see them.  The parameters keep their shapes.
        keep_casts: see ``ProductWeights``.
        norm: False leaves the LayerNorm out, which EVA-02 has and others have not.
    """

    def __init__(self, embed_dims: int, hidden_dims: int, padded: bool = False, keep_casts: bool = False,
                 norm: bool = True):
        super().__init__()
        self.w1 = nn.Linear(embed_dims, hidden_dims)
        self.w2 = nn.Linear(embed_dims, hidden_dims)
        self.ffn_ln = nn.LayerNorm(hidden_dims, eps=1e-6) if norm else nn.Identity()
        self.w3 = nn.Linear(hidden_dims, embed_dims)
        self.width = -(-hidden_dims // ALIGNED) * ALIGNED if padded else hidden_dims
        self.weights = ProductWeights(keep_casts) if keep_casts or self.width > hidden_dims else None

    @property
    def last(self) -> nn.Linear:
        """The layer that ends it."""
        return self.w3

    def forward(self, x: Tensor) -> Tensor:
        if self.weights is None:
            return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))
        dims, hidden = self.w3.weight.shape
        gate, value = (F.linear(x, self.weights(layer.weight, (self.width, dims)),
                                self.weights(layer.bias, (self.width,))) for layer in (self.w1, self.w2))
        inner = self.ffn_ln((F.silu(gate) * value)[..., :hidden])
        if self.width > hidden:
            inner = pad(inner, (*inner.shape[:-1], self.width), gate.dtype)
        return F.linear(inner, self.weights(self.w3.weight, (dims, self.width)), self.weights(self.w3.bias))


def build_mlp(kind: str, embed_dims: int, hidden_dims: int, padded: bool, keep_casts: bool) -> nn.Module:
    """One of ``MLPS`` by its name; ``padded`` and ``keep_casts`` as for ``SwiGLU``, which here has no LayerNorm."""
    if kind == 'swiglu':
        return SwiGLU(embed_dims, hidden_dims, padded, keep_casts, norm=False)
    return MLP(embed_dims, hidden_dims, kind, keep_casts)


class LayerScale(nn.Module):
    """A factor for each channel of a branch, ``gamma``; ``add_branch`` multiplies by it."""

    def __init__(self, embed_dims: int, start: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dims,), float(start)))


class DropPath(nn.Module):
    """How often a block's two residual branches are dropped; ``draw_drop_path`` draws for all blocks at once."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


BranchFactors = tuple[Tensor | None, Tensor | None]  # of a block's two branches, see ``add_branch``


def draw_drop_path(blocks: Sequence[DropPath], images: Runs, dtype: torch.dtype) -> list[BranchFactors]:
    """Draw which residual branches are dropped: once a pass for each block, branch and image, for all of its tokens.

    (torch's and timm's versions draw once per entry of the first axis, which here would be once per token.)

    Args:
        blocks: of each block; one in eval mode drops nothing.
        images: the T tokens of each image.
        dtype: of the factors.

    Returns:
        For each block, what to multiply each token of its two branches by: two (T, 1), 0 or 1 / (1 - rate); or two
        None, for nothing.
    """
    rates = tuple(block.rate if block.training else 0.0 for block in blocks)
    if not any(rates):
        return [(None, None)] * len(rates)
    device = images.cu_seqlens.device
    keep = _keep_rates(rates, device)
    draws = torch.rand(len(rates), 2, len(images.lengths), device=device) < keep
    factors = (draws / keep).to(dtype).index_select(2, images.index)[..., None]
    return [tuple(pair.unbind()) if rate else (None, None) for rate, pair in zip(rates, factors, strict=True)]


@functools.lru_cache(maxsize=64)
def _keep_rates(rates: tuple[float, ...], device: torch.device) -> Tensor:
    """1 - rate, (N, 1, 1), sent to the device once."""
    with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not be used in training later
        return 1 - torch.tensor(rates, device=device)[:, None, None]


def add_branch(x: Tensor, branch: Tensor, factor: Tensor | None, scale: LayerScale | None = None) -> Tensor:
    """x + branch * factor * gamma, all (T, C).

    Args:
        factor: (T, 1), as ``draw_drop_path`` gives it; None for 1.
        scale: with gamma, (C,); None for 1.
    """
    if factor is not None:
        branch = _Scale.apply(branch, factor.to(branch.dtype))
    return x + branch if scale is None else torch.addcmul(x, branch, scale.gamma)


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
