"""The transformer block of all families, on packed tokens."""
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_dense.core.attention import varlen_attention, with_size_channels
from apt_dense.core.derived import ProductWeights
from apt_dense.core.layers import BranchFactors, DropPath, LayerScale, add_branch
from apt_dense.core.reduction import Step
from apt_dense.core.rope import apply_rope
from apt_dense.core.runs import Runs

MOST_VERSIONS = 128  # of the compiled parts


@dataclass(frozen=True)
class BlockTokens:
    """What a block is told about its T tokens.

    Attributes:
        runs: which attend among themselves in this block.
        rope: their turns, complex (T, head_dim / 2); None for a model without.
        factors: of drop path, see ``draw_drop_path``.
        size_channels: how often attention counts each row, as the function of that name gives it; None for once.
        reduce: what happens between attention and MLP, see ``reduction``: it is called with what the block knows of an
            ``Attended``.
    """
    runs: Runs
    rope: Tensor | None = None
    factors: BranchFactors = (None, None)
    size_channels: Tensor | None = None
    reduce: Callable[..., Step] | None = None


class Attention(nn.Module):
    """What self-attention learns.

    Args:
        embed_dims, num_heads: C, and by how many it is divided.
        qkv_bias: queries, keys and values have a bias; ``key_bias=False``: keys have none.
        rope_halves: how turns pair the channels, see ``Rotary``.
        backend: see ``varlen_attention``.
        keep_casts: see ``ProductWeights``.
    """

    def __init__(self, embed_dims: int, num_heads: int, qkv_bias: bool = True, key_bias: bool = True,
                 rope_halves: bool = False, backend: str = 'auto', keep_casts: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dims // num_heads
        self.rope_halves = rope_halves
        self.backend = backend
        self.q_proj = nn.Linear(embed_dims, embed_dims, bias=qkv_bias)
        self.k_proj = nn.Linear(embed_dims, embed_dims, bias=qkv_bias and key_bias)
        self.v_proj = nn.Linear(embed_dims, embed_dims, bias=qkv_bias)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.weights = ProductWeights(keep_casts) if keep_casts else None

    def biases(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of queries, keys and values."""
        return self.q_proj.bias, self.k_proj.bias, self.v_proj.bias

    def forward(self, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(T, C) -> turned queries, turned keys and values, (T, heads, head_dim) each."""
        q, k, v = self.unturned(x)
        return *self.turn(q, k, rope), v

    def unturned(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T, C) -> queries, keys and values, (T, heads, head_dim) each."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        return tuple(self._linear(x, layer.weight, bias).unflatten(-1, (self.num_heads, -1))
                     for layer, bias in zip(layers, self.biases(), strict=True))

    def turn(self, q: Tensor, k: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
        """Queries and keys by their positions."""
        if rope is None:
            return q, k
        return tuple(apply_rope(part, rope, self.rope_halves).to(part.dtype) for part in (q, k))

    def project(self, attended: Tensor) -> Tensor:
        """(T, heads, head_dim), the values after attention -> (T, C)."""
        attended = attended.flatten(1)
        return self.proj(attended) if self.weights is None else self._linear(attended, self.proj.weight, self.proj.bias)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.weights is not None:
            weight, bias = self.weights(weight), None if bias is None else self.weights(bias)
        return F.linear(x, weight, bias)


class Block(nn.Module):
    """Pre-norm transformer block.

    Args:
        attn: ``Attention``, or what has its attributes and methods.
        mlp: (T, C) -> (T, C); ``last`` is its last linear layer.
        drop_path_rate: of its two branches.
        norm_eps: of its LayerNorms.
        layer_scale: what the factors of the branches, one a channel, start from; None for no factors.
        compiled: fuse all but the attention by torch.compile, with one piece of code for any number of tokens.
    """

    def __init__(self, attn: nn.Module, mlp: nn.Module, drop_path_rate: float = 0.0, norm_eps: float = 1e-6,
                 layer_scale: float | None = None, compiled: bool = False):
        super().__init__()
        embed_dims = attn.proj.out_features
        self.compiled = compiled
        self.norm1 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.attn = attn
        self.ls1 = None if layer_scale is None else LayerScale(embed_dims, layer_scale)
        self.norm2 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.mlp = mlp
        self.ls2 = None if layer_scale is None else LayerScale(embed_dims, layer_scale)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, tokens: BlockTokens) -> Tensor | tuple[Tensor, Step]:
        """(T, C) -> (T, C); with ``tokens.reduce`` fewer rows, and what became of those that were."""
        if tokens.reduce is not None:
            return self._forward_reduced(x, tokens)
        before, after = _compiled_parts() if self.compiled else (_before_attention, _after_attention)
        rope = tokens.rope
        q, k, v = before(self, x, torch.view_as_real(rope) if self.compiled and rope is not None else rope,
                         tokens.size_channels)
        attended = self._attend(q, k, v, tokens)
        return after(self, x, attended, *tokens.factors)

    def _forward_reduced(self, x: Tensor, tokens: BlockTokens) -> tuple[Tensor, Step]:
        normed = self.norm1(x)
        q, unturned, v = self.attn.unturned(normed)
        q, k = self.attn.turn(q, unturned, tokens.rope)
        wide = (q, k, v) if tokens.size_channels is None else with_size_channels(q, k, v, tokens.size_channels)
        attended = self.attn.project(self._attend(*wide, tokens))
        x = add_branch(x, attended, tokens.factors[0], self.ls1)
        step = tokens.reduce(x=x, normed=normed, queries=q, keys=k, unturned_keys=unturned)
        factor = None if tokens.factors[1] is None else tokens.factors[1][step.rows]
        return add_branch(step.x, self.mlp(self.norm2(step.x)), factor, self.ls2), step

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, tokens: BlockTokens) -> Tensor:
        attended = varlen_attention(q, k, v, tokens.runs, self.attn.backend)
        return attended if tokens.size_channels is None else attended[..., :self.attn.head_dim]

    @property
    def weights_per_token(self) -> int:
        """Multiply-adds of the linear layers for one token."""
        return sum(layer.weight.numel() for layer in self.modules() if isinstance(layer, nn.Linear))

    @property
    def mlp_weights_per_token(self) -> int:
        """Of these, those of the MLP."""
        return sum(layer.weight.numel() for layer in self.mlp.modules() if isinstance(layer, nn.Linear))

    @property
    def last_weights_per_token(self) -> int:
        """Of these, those of the layer that ends the block."""
        return self.mlp.last.weight.numel()


def _before_attention(block: Block, x: Tensor, rope: Tensor | None,
                      channels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    parts = block.attn(block.norm1(x), rope)
    return parts if channels is None else with_size_channels(*parts, channels)


def _after_attention(block: Block, x: Tensor, attended: Tensor, *factors: Tensor | None) -> Tensor:
    x = add_branch(x, block.attn.project(attended), factors[0], block.ls1)
    return add_branch(x, block.mlp(block.norm2(x)), factors[1], block.ls2)


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
