"""Multiply-adds of the backbone, counted exactly for a given layout: what the time should be in proportion to."""
from dataclasses import dataclass

from apt_dense.core.attention import EXTRA_CHANNELS
from apt_dense.core.layout import TokenLayout
from apt_dense.core.reduced import rows_by_block
from apt_dense.core.vit import PackedViT

# An attention backward pass by a fused kernel: the scores once more, then the gradients of values, of probabilities, of
# queries and of keys, five products where the forward pass has two.
ATTENTION_BACKWARD = 2.5


@dataclass(frozen=True)
class MultiplyAdds:
    """Multiply-adds of one forward pass over a batch; a multiply-add is two FLOPs.

    Counted are all matrix products and convolutions.  Not counted is what costs memory traffic rather than arithmetic:
    scoring, norms, RoPE, SiLU, residual sums, the resampling of images and position tables, gathers and expansion.

    Attributes:
        patches: the patch embedding of all cells, and of the coarse patches of the resized images.
        details: the 2 x 2 convolutions and the ZeroMLP of the coarse patches.
        linears: queries, keys, values, output projection and MLP of all blocks.
        attention: scores and weighted sums of all blocks, 2 n**2 C for a run of n tokens, with the channels that
            ``proportional_attention`` and a proportional reduction add to C; what a reduction compares.
        last_linears: the part of ``linears`` that ends the blocks, the last of the MLP.
    """
    patches: int
    details: int
    linears: int
    attention: int
    last_linears: int

    @property
    def total(self) -> int:
        """Of the forward pass."""
        return self.patches + self.details + self.linears + self.attention

    def train_step(self, with_cp: bool = False) -> float:
        """Of a forward and a backward pass, where every parameter takes a gradient and the image none.

        Args:
            with_cp: embedding and blocks are computed again in the backward pass, except for their last layer, whose
                output nothing in that pass needs.  (Exact for the dense model and where patches merge; an APT without
                merged patches or detail branch computes its projection once more than is counted.)
        """
        blocks = self.linears * 3 + self.attention * (1 + ATTENTION_BACKWARD)
        if with_cp:
            blocks += self.linears - self.last_linears + self.attention
            # Of the dense embedding, the projection is all there is.
            blocks += self.patches + self.details if self.details else 0
        return self.patches * 2 + self.details * 3 + blocks


def multiply_adds(model: PackedViT, layout: TokenLayout) -> MultiplyAdds:
    """Count the multiply-adds of a forward pass of ``model`` over a batch with this layout.

    Only the model's sizes are read, so it may be on the meta device.  A layout of one scale counts as the dense twin,
    whose patch embedding has no other scales.

    Args:
        model: the backbone.
        layout: of the batch, by ``model.make_layout`` or any other way.
    """
    dims = model.embed_dims
    counts = layout.scale_counts
    embed = model.patch_embed
    patches = (layout.num_cells + sum(counts[1:])) * embed.proj.weight[0].numel() * dims
    details = 0
    if embed.conv_down is not None and layout.num_scales > 1:
        # A token of scale s takes 4**(s - 1) + ... + 4 + 1 outputs of the convolution, each from 4 C inputs.
        outputs = sum(count * (4**scale - 1) // 3 for scale, count in enumerate(counts))
        details = outputs * 4 * dims**2
        if embed.zero_mlp is not None:
            details += sum(counts[1:]) * dims**2
    linears = last_linears = attention = 0
    for index, (block, rows) in enumerate(zip(model.blocks, rows_by_block(model, layout), strict=True)):
        local = model.window_size > 0 and index not in model.global_blocks
        mlp = block.mlp_weights_per_token
        linears += sum(rows.windows) * (block.weights_per_token - mlp) + sum(rows.left) * mlp
        last_linears += sum(rows.left) * block.last_weights_per_token
        attended = dims + rows.counted * EXTRA_CHANNELS * dims // model.head_dim
        attention += 2 * attended * sum(n * n for n in (rows.windows if local else rows.images)) + rows.reduction
    return MultiplyAdds(patches, details, linears, attention, last_linears)


def dense_layout(layout: TokenLayout) -> TokenLayout:
    """The layout of the dense twin over the same batch: one scale, every cell a token."""
    return TokenLayout.dense(layout.batch_size, layout.height, layout.width, layout.window_size, 1,
                             layout.num_prefix)


def ideal_speedup(model: PackedViT, layout: TokenLayout, train: bool = False, with_cp: bool = False) -> float:
    """The dense twin's multiply-adds over those of ``model`` with this layout.

    Args:
        model, layout: as for ``multiply_adds``.
        train: of a training step instead of a forward pass, see ``MultiplyAdds.train_step``.
        with_cp: with recomputed blocks; only with ``train``.
    """
    dense, apt = multiply_adds(model, dense_layout(layout)), multiply_adds(model, layout)
    if train:
        return dense.train_step(with_cp) / apt.train_step(with_cp)
    return dense.total / apt.total
