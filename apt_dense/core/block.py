"""EVA-02's transformer block on packed tokens."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_dense.core.attention import varlen_attention
from apt_dense.core.layout import Runs
from apt_dense.core.rope import apply_rope


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


class Attention(nn.Module):
    """Rotary self-attention of packed tokens; queries and values have a bias, keys have none."""

    def __init__(self, embed_dims: int, num_heads: int, backend: str = 'auto'):
        super().__init__()
        self.num_heads = num_heads
        self.backend = backend
        self.q_proj = nn.Linear(embed_dims, embed_dims, bias=False)
        self.k_proj = nn.Linear(embed_dims, embed_dims, bias=False)
        self.v_proj = nn.Linear(embed_dims, embed_dims, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(embed_dims))
        self.v_bias = nn.Parameter(torch.zeros(embed_dims))
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor, runs: Runs, rope: Tensor) -> Tensor:
        """(T, C) -> (T, C): each run attends among itself."""
        q, k, v = (F.linear(x, layer.weight, bias).unflatten(-1, (self.num_heads, -1)) for layer, bias in
                   ((self.q_proj, self.q_bias), (self.k_proj, None), (self.v_proj, self.v_bias)))
        q, k = (apply_rope(part, rope).to(v.dtype) for part in (q, k))
        return self.proj(varlen_attention(q, k, v, runs, self.backend).flatten(1))


class DropPath(nn.Module):
    """Drop a residual branch for whole images: one draw an image, for all of its tokens.

    (torch's and timm's versions draw once per entry of the first axis, which here would be once per token.)
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, images: Runs) -> Tensor:
        """(T, C) -> (T, C), scaled by 1 / (1 - rate) where it is kept."""
        if self.rate == 0 or not self.training:
            return x
        keep = 1 - self.rate
        draws = torch.rand(len(images.lengths), 1, device=x.device) < keep
        return x * images.spread(draws.to(x.dtype) / keep)

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


class Block(nn.Module):
    """Pre-norm transformer block of EVA-02."""

    def __init__(self, embed_dims: int, num_heads: int, mlp_ratio: float, drop_path_rate: float, backend: str):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims, eps=1e-6)
        self.attn = Attention(embed_dims, num_heads, backend)
        self.norm2 = nn.LayerNorm(embed_dims, eps=1e-6)
        self.mlp = SwiGLU(embed_dims, int(embed_dims * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, runs: Runs, rope: Tensor, images: Runs) -> Tensor:
        """(T, C) -> (T, C).  ``runs`` attend among themselves; drop path draws once for each of ``images``."""
        x = x + self.drop_path(self.attn(self.norm1(x), runs, rope), images)
        return x + self.drop_path(self.mlp(self.norm2(x)), images)
