"""The encoder with fixed shapes, for ``torch.export`` and ONNX.

A packed sequence has another length for each image, and a graph with fixed shapes has not.  Here the rows are filled up
to a fixed number, the *bucket*.  The rows that fill it are a run of padding: no other row attends to them, and no cell
takes their output.  Which row holds which patch is not a part of the graph: it comes in as tensors, by ``inputs``.

The same parameters and the same numbers as ``PackedViT.forward_layout``, to rounding; for one image, in inference.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_dense.core.block import Block
from apt_dense.core.block_loop import log_areas
from apt_dense.core.embed import position_maps
from apt_dense.core.layers import add_branch
from apt_dense.core.layout import TokenLayout
from apt_dense.core.rope import rope_table
from apt_dense.core.vit import PackedViT

Attended = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]  # turns, and rows, keys and places of the windows


class FixedEncoder(nn.Module):
    """An encoder for images of one size and a fixed number of tokens.

    Args:
        model: whose parameters are shared.
        size_px: (height, width) of the images, multiples of the model's ``size_divisor_px``.
        num_tokens: the bucket, prefix rows included.  None: of the dense model, every cell is a token, and the image is
            the only input.

    Raises:
        ValueError: for a size that the model does not take, a bucket of more tokens than the image has cells, or a
            model with a reduction.
    """

    def __init__(self, model: PackedViT, size_px: tuple[int, int], num_tokens: int | None = None):
        super().__init__()
        if model.reduction is not None:
            raise ValueError('the model has a reduction, whose rows change from block to block: a graph with fixed '
                             'shapes has one number of them. Build the model with reduction=None')
        height, width = (side // model.patch_size for side in size_px)
        if any(side % model.size_divisor_px or not side for side in size_px):
            raise ValueError(f'size {size_px[0]}x{size_px[1]} px: the sides must be multiples of '
                             f'{model.size_divisor_px} px')
        if num_tokens is None and model.num_scales > 1:
            raise ValueError(f'the model has {model.num_scales} sizes of patches: give num_tokens, the bucket, which '
                             'only the dense model does without')
        self.model, self.size_px, self.num_tokens = model, tuple(size_px), num_tokens
        self.height, self.width = height, width
        self.register_buffer('positions', self._positions(), persistent=False)
        dense = TokenLayout.dense(1, height, width, model.window_size, model.num_scales, model.num_prefix)
        if num_tokens is None:
            self.num_tokens = dense.num_tokens
            for name, value in self.inputs(dense).items():
                if value.dtype != torch.bool or not value.all():  # not a mask that leaves nothing out
                    self.register_buffer(name, value, persistent=False)
        elif not 1 <= num_tokens <= dense.num_tokens:
            raise ValueError(f'a bucket of {num_tokens} tokens, and {size_px[0]}x{size_px[1]} px have '
                             f'{dense.num_tokens}: choose 1 to {dense.num_tokens}')

    @torch.no_grad()
    def inputs(self, layout: TokenLayout) -> dict[str, Tensor]:
        """The tensors of a layout of one image, filled up to T tokens, for ``forward``.

        Returns:
            'patches': (T,) int64, the patch of each row, counted over the prefix rows, the cells and the patches of
            each larger size, all in raster order.  'turns': (T, head_dim / 2, 2), cosine and sine of the positions in
            the image, where the model turns.  'keys': (1, T) bool, False for padding.  'cells': (H * W,) int64, the row
            that covers each cell, in raster order.  With windows of L cells also 'window_turns', 'window_rows'
            (windows, L) int64, the rows of each window, 'window_keys' (windows, L) bool, False beyond its last one, and
            'window_places' (T,) int64, where each row is among these.  For a model with ``proportional_attention`` and
            several sizes of patches, the keys are what is added to the logits: the logarithm of the cells that a row
            covers, and minus infinity where the others are False.

        Raises:
            ValueError: for a layout of another grid or batch, or of more tokens than the bucket.
        """
        if (layout.batch_size, layout.height, layout.width) != (1, self.height, self.width):
            raise ValueError(f'a layout of {layout.batch_size} images of {layout.height}x{layout.width} cells, wanted '
                             f'1 of {self.height}x{self.width}')
        if layout.num_tokens > self.num_tokens:
            raise ValueError(f'the image has {layout.num_tokens} tokens, and the bucket {self.num_tokens}: set '
                             'max_tokens of the model, which raises the thresholds, or export a larger bucket')
        spare = self.num_tokens - layout.num_tokens
        rows = torch.arange(layout.num_tokens, device=layout.starts.device)
        tensors = dict(patches=F.pad(self._patch_of_row(layout), (0, spare)),
                       turns=self._turns(layout, False, spare),
                       keys=F.pad(torch.ones_like(rows, dtype=torch.bool), (0, spare))[None],
                       cells=layout.expand(rows[:, None]).flatten())
        if self.model.window_size:
            tensors.update(window_turns=self._turns(layout, True, spare), **self._windows(layout, spare))
        if self.model.counts_cells:
            sizes = F.pad(log_areas(layout).to(self.model.patch_embed.proj.weight.dtype), (0, spare))
            tensors['keys'] = sizes[None].masked_fill(~tensors['keys'], -torch.inf)
            if 'window_keys' in tensors:
                tensors['window_keys'] = sizes[tensors['window_rows']].masked_fill(~tensors['window_keys'], -torch.inf)
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def forward(self, image: Tensor, **layout: Tensor) -> tuple[Tensor, ...]:
        """(1, 3, H, W), normalised, and what ``inputs`` gives (the dense model wants nothing) -> the model's maps."""
        get = (layout or self._buffers).get
        x = self._embed(image)[get('patches')]
        everywhere = get('turns'), None, get('keys'), None
        windows = tuple(get(name) for name in ('window_turns', 'window_rows', 'window_keys', 'window_places'))
        outputs = []
        for index, block in enumerate(self.model.blocks):
            local = self.model.window_size > 0 and index not in self.model.global_blocks
            x = self._block(block, x, windows if local else everywhere)
            if index in self.model.out_indices:
                rows = x if self.model.norm is None else self.model.norm(x)
                outputs.append(rows[get('cells')].T.unflatten(1, (self.height, self.width))[None])
        return tuple(outputs)

    @staticmethod
    def _block(block: Block, x: Tensor, attended: Attended) -> Tensor:
        turns, rows, keys, places = attended
        parts = block.attn(block.norm1(x), turns)
        q, k, v = ((part[None] if rows is None else part[rows]).transpose(1, 2) for part in parts)
        heads = F.scaled_dot_product_attention(q, k, v, None if keys is None else keys[:, None, None])
        result = heads.transpose(1, 2).flatten(0, 1).flatten(1)
        x = add_branch(x, block.attn.proj(result if places is None else result[places]), None, block.ls1)
        return add_branch(x, block.mlp(block.norm2(x)), None, block.ls2)

    def _embed(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) -> the prefix rows and every patch of every size, with its position: (P, C).

        The maps of all sizes are computed over the whole image: a third more than the cells alone.
        """
        embed = self.model.patch_embed
        cells = details = embed.proj(image)
        maps = [cells]
        for scale in range(1, self.model.num_scales):
            small = F.interpolate(image, scale_factor=0.5**scale, mode='bilinear', align_corners=False)
            maps.append(embed.proj(small))
            if embed.conv_down is not None:
                details = embed.conv_down(details)
                added = details if embed.zero_mlp is None else embed.zero_mlp(details.movedim(1, 3)).movedim(3, 1)
                maps[-1] = maps[-1] + added
        rows = torch.cat([part[0].flatten(1).T for part in maps])
        if self.positions is not None:
            rows = rows + self.positions
        if self.model.num_prefix:
            rows = torch.cat([self.model.prefix(), rows])
        return rows if self.model.norm_pre is None else self.model.norm_pre(rows)

    @torch.no_grad()
    def _positions(self) -> Tensor | None:
        """(P, C): the position of every patch of every size, raster order each; None for a model without a table."""
        if self.model.pos_embed is None:
            return None
        maps = position_maps(self.model.position_table(self.height, self.width), self.model.num_scales,
                             self.model.pos_anchor)
        return torch.cat([part.flatten(0, 1) for part in maps])

    def _patch_of_row(self, layout: TokenLayout) -> Tensor:
        scales = layout.scales.clamp(min=0)
        y, x = layout.cell_yx
        patch = (y >> scales) * (layout.width >> scales) + (x >> scales)
        areas = [layout.height * layout.width >> 2 * scale for scale in range(layout.num_scales)]
        before = torch.tensor([sum(areas[:scale]) for scale in range(layout.num_scales)], device=patch.device)
        rows = torch.arange(layout.num_tokens, device=patch.device)  # those of the prefix are the first ones
        return (patch + before[scales] + layout.num_prefix).where(layout.scales >= 0, rows)

    def _turns(self, layout: TokenLayout, windowed: bool, spare: int) -> Tensor | None:
        if self.model.rope is None:
            return None
        table = rope_table(layout, self.model.rope, windowed, self.model.rope_anchor)
        return F.pad(torch.view_as_real(table), (0, 0, 0, 0, 0, spare))

    @staticmethod
    def _windows(layout: TokenLayout, spare: int) -> dict[str, Tensor]:
        starts = layout.windows.cu_seqlens[:-1].long()
        lengths = layout.windows.cu_seqlens.diff().long()
        longest = layout.windows.whole_length
        places = torch.arange(longest, device=starts.device)
        keys = places < lengths[:, None]
        offsets = torch.arange(len(starts), device=starts.device) * longest - starts
        row_places = torch.arange(layout.num_tokens, device=starts.device) + offsets.repeat_interleave(lengths)
        return dict(window_rows=(starts[:, None] + places).where(keys, 0), window_keys=keys,
                    window_places=F.pad(row_places, (0, spare)))
