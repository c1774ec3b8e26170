"""EVA-02's transformer block on packed tokens."""
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_dense.core.attention import varlen_attention
from apt_dense.core.derived import ProductWeights
from apt_dense.core.layers import BranchFactors, DropPath, SwiGLU, add_branch
from apt_dense.core.rope import apply_rope
from apt_dense.core.runs import Runs

MOST_VERSIONS = 128  # of the compiled parts


class Attention(nn.Module):
    """What rotary self-attention learns; queries and values have a bias, keys have none."""

    def __init__(self, embed_dims: int, num_heads: int, backend: str = 'auto', keep_casts: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.backend = backend
        self.q_proj = nn.Linear(embed_dims, embed_dims, bias=False)
        self.k_proj = nn.Linear(embed_dims, embed_dims, bias=False)
        self.v_proj = nn.Linear(embed_dims, embed_dims, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(embed_dims))
        self.v_bias = nn.Parameter(torch.zeros(embed_dims))
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.weights = ProductWeights(keep_casts) if keep_casts else None

    def forward(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T, C) -> turned queries, turned keys and values, (T, heads, head_dim) each."""
        q, k, v = (self._linear(x, layer.weight, bias).unflatten(-1, (self.num_heads, -1)) for layer, bias in
                   ((self.q_proj, self.q_bias), (self.k_proj, None), (self.v_proj, self.v_bias)))
        q, k = (apply_rope(part, rope).to(v.dtype) for part in (q, k))
        return q, k, v

    def project(self, attended: Tensor) -> Tensor:
        """(T, heads, head_dim), the values after attention -> (T, C)."""
        attended = attended.flatten(1)
        return self.proj(attended) if self.weights is None else self._linear(attended, self.proj.weight, self.proj.bias)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.weights is not None:
            weight, bias = self.weights(weight), None if bias is None else self.weights(bias)
        return F.linear(x, weight, bias)


class Block(nn.Module):
    """Pre-norm transformer block of EVA-02.

    Args:
        compiled: fuse all but the attention by torch.compile, with one piece of code for any number of tokens.
        pad_mlp, keep_casts: see ``SwiGLU``.
    """

    def __init__(self, embed_dims: int, num_heads: int, mlp_ratio: float, drop_path_rate: float, backend: str,
                 compiled: bool = False, pad_mlp: bool = False, keep_casts: bool = False):
        super().__init__()
        self.compiled = compiled
        self.norm1 = nn.LayerNorm(embed_dims, eps=1e-6)
        self.attn = Attention(embed_dims, num_heads, backend, keep_casts)
        self.norm2 = nn.LayerNorm(embed_dims, eps=1e-6)
        self.mlp = SwiGLU(embed_dims, int(embed_dims * mlp_ratio), pad_mlp, keep_casts)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, runs: Runs, rope: Tensor, factors: BranchFactors = (None, None)) -> Tensor:
        """(T, C) -> (T, C).  ``runs`` attend among themselves; ``factors`` are of drop path."""
        before, after = _compiled_parts() if self.compiled else (_before_attention, _after_attention)
        q, k, v = before(self, x, torch.view_as_real(rope) if self.compiled else rope)
        attended = varlen_attention(q, k, v, runs, self.attn.backend)
        return after(self, x, attended, *factors)


def _before_attention(block: Block, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return block.attn(block.norm1(x), rope)


def _after_attention(block: Block, x: Tensor, attended: Tensor, *factors: Tensor | None) -> Tensor:
    x = add_branch(x, block.attn.project(attended), factors[0])
    return add_branch(x, block.mlp(block.norm2(x)), factors[1])


@functools.cache
def _compiled_parts() -> tuple[Callable, Callable]:
    """The two parts, which all blocks of all models share.

    (Functions of the block, not methods that it keeps: a copy of the block would go on with the original's weights.)

    Each precision and each kind of gradient mode is another version of them, each size of model too: more than the
    eight that torch allows, after which it silently compiles no more.
    """
    # (torch before 2.6 has the other name.)
    limit = 'recompile_limit' if hasattr(torch._dynamo.config, 'recompile_limit') else 'cache_size_limit'
    setattr(torch._dynamo.config, limit, max(getattr(torch._dynamo.config, limit), MOST_VERSIONS))
    return torch.compile(_before_attention, dynamic=True), torch.compile(_after_attention, dynamic=True)
