"""Token merging on a dense EVA-02, for comparison with APT at equal token counts; inference only.

Bipartite soft matching as in ToMe (arXiv 2210.09461), for dense prediction: tokens merge between attention and MLP of
every global block but the last one, and the output is un-merged: each cell gets the token that it went into.  As in the
authors' code, what is compared are the keys (before rotation), their mean over the heads.

Choices that the paper, which classifies images with full attention, leaves open:

* With window attention tokens merge within windows only, as many in each window.  So every window stays one run, of the
  same length as the others, all attention is batched, and no token changes its window.  Matching over the whole image
  could merge more where more is alike, but windows would then differ in length and the packing would be APT's.
* A merged token keeps the rotary position of the token that the other one went into.
* Attention is proportional (the logarithm of the sizes is added to the logits), as in the paper.  The class token never
  merges.
* Each merging keeps the same fraction of the tokens, chosen so that their mean over the layers is the wanted one.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_dense.core.eva02 import APTEVA02, EVA02Attention
from apt_dense.core.flops import MultiplyAdds, multiply_adds
from apt_dense.core.layout import TokenLayout
from apt_dense.core.rope import apply_rope, rope_table


class TokenMerging(nn.Module):
    """A dense EVA-02 whose tokens merge on the way.

    Args:
        model: the dense model; its weights are shared.
        kept: wanted mean, over the attention and MLP layers, of tokens over cells.

    Raises:
        ValueError: if the model is not dense, or has no block to merge in.
    """

    def __init__(self, model: APTEVA02, kept: float):
        super().__init__()
        if model.num_scales != 1:
            raise ValueError(f'token merging starts from a dense model, got num_scales={model.num_scales}')
        depth = len(model.blocks)
        self.merging_blocks = sorted(model.global_blocks - {depth - 1})
        if not self.merging_blocks:
            raise ValueError('no global block before the last one: there is nowhere to merge, use more blocks')
        self.model = model
        self.kept = kept
        self.last_layout: TokenLayout | None = None

    def schedule(self, num_tokens: int) -> list[int]:
        """Tokens of a run after each of the merging blocks, for a run of ``num_tokens``.

        Raises:
            ValueError: if the most that a bipartite matching can merge at every merging block is too little.
        """
        model = self.model
        return merging_schedule(num_tokens, self.kept, self.merging_blocks, len(model.blocks),
                                model.cls_token is not None)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """As ``APTEVA02.forward``."""
        model = self.model
        layout = self.last_layout = model.make_layout(x)
        x = model.embed(x, layout).unflatten(0, (len(layout.windows.lengths), -1))  # (R, n, C): runs are windows
        tables = [rope_table(layout, model.rope, windowed).unflatten(0, x.shape[:2]) for windowed in (False, True)]
        size = None
        source = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])  # where each first token is now
        counts = dict(zip(self.merging_blocks, self.schedule(x.shape[1]), strict=True))
        outputs = []
        for index, block in enumerate(model.blocks):
            local = bool(model.window_size) and index not in model.global_blocks
            runs = x.shape[0] if local else layout.batch_size
            attended, keys = _attention(block.attn, block.norm1(x), tables[local], size, runs)
            x = x + attended
            if index in counts:
                merging = Merging(keys, counts[index], layout.num_prefix)
                x, size = merging.average(x, size)
                tables = [merging.keep(table) for table in tables]
                source = merging.source.gather(1, source)
            x = x + block.mlp(block.norm2(x))
            if index in model.out_indices:
                cells = x.gather(1, source[..., None].expand(-1, -1, x.shape[-1]))
                outputs.append(layout.expand(cells.flatten(0, 1)))
        return tuple(outputs)

    def multiply_adds(self, layout: TokenLayout) -> MultiplyAdds:
        """Of a forward pass over a batch with this dense layout; the matching's similarities count as attention."""
        model, dense = self.model, multiply_adds(self.model, layout)
        run = layout.windows.lengths[0]
        per_image = len(layout.windows.lengths) // layout.batch_size
        dims, hidden = model.embed_dims, model.blocks[0].mlp.w1.out_features
        counts = dict(zip(self.merging_blocks, self.schedule(run), strict=True))
        linears = last_linears = attention = 0
        for index in range(len(model.blocks)):
            local = bool(model.window_size) and index not in model.global_blocks
            linears += run * 4 * dims**2
            attention += 2 * dims * run**2 * (1 if local else per_image)
            if index in counts:
                attention += (run // 2) * (run - run // 2) * model.head_dim
                run = counts[index]
            linears += run * 3 * dims * hidden
            last_linears += run * dims * hidden
        runs = len(layout.windows.lengths)
        return MultiplyAdds(dense.patches, dense.details, linears * runs, attention * runs, last_linears * runs)


class Merging:
    """One bipartite matching of the tokens of each run, and what follows from it.

    Every second token, from the first on, may go into one of the others, the one whose key is most like its own; those
    go that are most alike, as many as it takes.  The new order, on which the split of the next matching depends, is
    that of ToMe's code: first those of the one half that stay, then the other half.  Those that stay are in the order
    of their likeness, the most alike first; with a class token as they stood, so that it stays the first.

    Args:
        keys: (R, n, d), what is compared, by its cosine.
        count: tokens that are left, from ``fewest_after_merging`` to n.
        has_cls_token: the first token never goes.

    Attributes:
        source: (R, n), for each old token the new one that holds it.

    Raises:
        ValueError: if so few tokens cannot be left, or more than there are.
    """

    def __init__(self, keys: Tensor, count: int, has_cls_token: bool):
        runs, num_tokens, _ = keys.shape
        fewest = fewest_after_merging(num_tokens, has_cls_token)
        if not fewest <= count <= num_tokens:
            raise ValueError(f'count={count}: one matching of {num_tokens} tokens leaves {fewest} to {num_tokens}')
        gone = num_tokens - count
        keys = F.normalize(keys, dim=-1)
        movable, fixed = keys[:, ::2], keys[:, 1::2]
        best, into = (movable @ fixed.transpose(1, 2)).max(-1)
        if has_cls_token:
            best[:, 0] = -torch.inf
        order = best.argsort(dim=-1, descending=True, stable=True)
        moved, stay = order[:, :gone], order[:, gone:]
        if has_cls_token:
            stay = stay.sort(-1).values
        old = torch.arange(num_tokens, device=keys.device).expand(runs, -1)
        self._rows = torch.cat([old[:, ::2].gather(1, stay), old[:, 1::2]], 1)  # the old rows that stay
        self._moved = old[:, ::2].gather(1, moved)
        self._into = stay.shape[1] + into.gather(1, moved)
        self.source = torch.empty_like(old)
        self.source.scatter_(1, self._rows, old[:, :count])
        self.source.scatter_(1, self._moved, self._into)

    def keep(self, values: Tensor) -> Tensor:
        """(R, n, c) -> (R, count, c): of the tokens that others went into, and of those that did nothing."""
        return values.gather(1, self._rows[..., None].expand(-1, -1, values.shape[-1]))

    def average(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens (R, n, C) and how many first tokens each holds, (R, n) -> means weighted by size, and their sizes.

        Sizes of None are ones.
        """
        size = x.new_ones(x.shape[:2]) if size is None else size
        weighted = x * size[..., None]
        moved = self._moved[..., None].expand(-1, -1, x.shape[-1])
        into = self._into[..., None].expand_as(moved)
        total = self.keep(weighted).scatter_add(1, into, weighted.gather(1, moved))
        sizes = self.keep(size[..., None])[..., 0].scatter_add(1, self._into, size.gather(1, self._moved))
        return total / sizes[..., None], sizes


def fewest_after_merging(num_tokens: int, has_cls_token: bool) -> int:
    """Tokens that are left of a run where all of one half merge, but the class token."""
    return num_tokens - (num_tokens - has_cls_token) // 2


def merging_schedule(num_tokens: int, kept: float, merging_blocks: list[int], depth: int,
                     has_cls_token: bool = False) -> list[int]:
    """Tokens after each merging block, each the same fraction of those before it, so that their mean is ``kept``.

    The mean is over the attention and MLP layers of all blocks; merging comes between the two.

    Raises:
        ValueError: if that takes more than the most that can merge at every block.
    """
    # Layers from each merging on; those before the first one have all tokens.
    ends = [2 * index + 1 for index in merging_blocks[1:]] + [2 * depth]
    layers = [end - 2 * index - 1 for index, end in zip(merging_blocks, ends, strict=True)]

    def counts(fraction: float) -> list[int]:
        result, left = [], num_tokens
        for turn in range(len(layers)):
            left = max(fewest_after_merging(left, has_cls_token), min(left, round(num_tokens * fraction**(turn + 1))))
            result.append(left)
        return result

    def mean(fraction: float) -> float:
        left = sum(n * number for n, number in zip(counts(fraction), layers, strict=True))
        return (left + num_tokens * (2 * merging_blocks[0] + 1)) / (2 * depth * num_tokens)

    low, high = 0.5, 1.0
    if kept < mean(low) - 0.005 or kept > 1:
        raise ValueError(f'kept={kept}: merging in blocks {merging_blocks} of {depth} gives {mean(low):.3f} to 1')
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if mean(middle) > kept else (middle, high)
    return counts((low + high) / 2)


def _attention(attention: EVA02Attention, x: Tensor, table: Tensor, size: Tensor | None,
               runs: int) -> tuple[Tensor, Tensor]:
    """Attention of ``runs`` equal runs among themselves; (R, n, C) -> the same shape, and the keys' mean over heads.

    ``size`` (R, n) makes it proportional; None where no token has merged.
    """
    rope = table.flatten(0, 1)
    q, k, v = (F.linear(x.flatten(0, 1), layer.weight, bias).unflatten(-1, (attention.num_heads, -1))
               for layer, bias in ((attention.q_proj, attention.q_bias), (attention.k_proj, None),
                                   (attention.v_proj, attention.v_bias)))
    keys = k.mean(1).unflatten(0, x.shape[:2])
    q, k, v = (part.to(v.dtype).unflatten(0, (runs, -1)).transpose(1, 2)
               for part in (apply_rope(q, rope), apply_rope(k, rope), v))
    bias = None if size is None else size.log().view(runs, 1, 1, -1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
    return attention.proj(out.reshape(x.shape)), keys
