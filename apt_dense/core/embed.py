"""Adaptive patch embedding: one vector for a patch of any size."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_dense.core.arguments import check_arguments, check_choice
from apt_dense.core.layout import TokenLayout
from apt_dense.core.position import resample_table, sample_table

DETAIL_BRANCHES = ('zero', 'none', 'residual', 'nonzero')
# What APT adds to a dense model, where the backbone's ``patch_embed`` is an AdaptivePatchEmbed: names in the backbone.
ADDED_PARAMETERS = ('patch_embed.conv_down.weight', 'patch_embed.conv_down.bias', 'patch_embed.zero_mlp.weight',
                    'patch_embed.zero_mlp.bias')


class AdaptivePatchEmbed(nn.Module):
    """E(P) = proj(Resize(P)) + ZeroMLP(Conv({proj(sub-patches)})) + position; base patches: proj(P) + position.

    ``proj`` is the backbone's own patch embedding.  ``conv_down`` is one 2 x 2, stride 2 convolution, shared by all
    scales and applied s times to the 4**s base patches of a patch of scale s.  ``zero_mlp`` is one Linear layer.

    Args:
        patch_size: side of a base patch in pixels.
        embed_dims: C.
        num_scales: S; 1 is the plain patch embedding, without added parameters.
        detail_branch: 'zero', ZeroMLP starts at zero (the paper); 'none', no branch (the paper's Resizing baseline);
            'residual', the convolution is added without an MLP, and 'nonzero', the MLP starts like any other layer
            (both of the paper's ablation).
        bias: of ``proj``.

    Raises:
        ValueError: for an argument that is unknown or has a wrong value.

    Source: APT, eq. 2, and the public code's mixed patch embedding.
    """

    def __init__(self, patch_size: int = 16, embed_dims: int = 768, num_scales: int = 1, detail_branch: str = 'zero',
                 bias: bool = True):
        super().__init__()
        check_arguments(patch_size=patch_size, embed_dims=embed_dims, num_scales=num_scales, bias=bias)
        check_choice('detail_branch', detail_branch, DETAIL_BRANCHES)
        self.patch_size = patch_size
        self.num_scales = num_scales
        self.proj = nn.Conv2d(3, embed_dims, patch_size, patch_size, bias=bias)
        self.conv_down = self.zero_mlp = None
        if num_scales > 1 and detail_branch != 'none':
            self.conv_down = nn.Conv2d(embed_dims, embed_dims, 2, 2)
            if detail_branch != 'residual':
                self.zero_mlp = nn.Linear(embed_dims, embed_dims)
            if detail_branch == 'zero':
                nn.init.zeros_(self.zero_mlp.weight)
                nn.init.zeros_(self.zero_mlp.bias)

    def forward(self, image: Tensor, layout: TokenLayout, positions: Tensor | None = None) -> Tensor:
        """Embed the tokens of a layout without prefix rows.

        Args:
            image: (B, 3, H * patch_size, W * patch_size), normalised.
            layout: T tokens over the H x W cells, the same number of scales.
            positions: of the patches of all scales, see ``position_tables``; None for none.

        Returns:
            (T, C), packed as the layout says.
        """
        cells = self._project(self._patches(image, layout, 0))
        if not layout.is_dense:
            tokens = cells[layout.starts]
        elif positions is None:
            tokens = cells
        else:
            table = positions[:layout.height * layout.width]
            tokens = (cells.unflatten(0, (layout.batch_size, -1)) + table).flatten(0, 1)
        if self.num_scales > 1:
            coarse = self._embed_coarse(image, cells, layout)
            tokens = tokens.index_copy_(0, layout.coarse_tokens, coarse.to(tokens.dtype))
        return tokens if layout.is_dense or positions is None else tokens + positions[layout.position_index]

    def _embed_coarse(self, image: Tensor, cells: Tensor, layout: TokenLayout) -> Tensor:
        """The merged patches without positions, all scales in turn, fine to coarse: (T - T_0, C).

        A scale without tokens costs nothing; if all are, the result has no rows, and gradients of zero.
        """
        patches = [self._patches(image, layout, scale)[block]
                   for scale, block in enumerate(layout.coarse_blocks, start=1) if len(block)]
        embedded = self._project(torch.cat(patches) if patches else image.new_zeros(0, self.proj.weight[0].numel()))
        details = self._details(cells, layout)
        return embedded if details is None else embedded + details

    def _patches(self, image: Tensor, layout: TokenLayout, scale: int) -> Tensor:
        """The image's patches of a scale, resized to base size: (B * H * W / 4**s, 3 * patch_size**2), in order."""
        if scale:
            # Directly by 2**-s: halving s times would average other pixels.
            image = F.interpolate(image, scale_factor=0.5**scale, mode='bilinear', align_corners=False)
        size = self.patch_size
        patches = image.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5)
        return layout.order(patches, scale).flatten(1)

    def _project(self, patches: Tensor) -> Tensor:
        """(N, 3 * patch_size**2) -> (N, C): the patch embedding's convolution, written as a product."""
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)

    def _details(self, cells: Tensor, layout: TokenLayout) -> Tensor | None:
        """Embedded cells (B * H * W, C) -> the detail terms of the merged patches, fine to coarse: (T - T_0, C).

        A token's cells are consecutive, and so are the four parts of each 2 x 2 square at every level: the convolution
        is a product over four rows.  All scales share a level's product; tokens leave when they are one row.
        """
        if self.conv_down is None:
            return None
        counts = layout.scale_counts[1:]
        cells_of_block = torch.arange(4**len(counts), device=cells.device)
        index = [((block << 2 * scale)[:, None] + cells_of_block[:4**scale]).flatten()
                 for scale, block in enumerate(layout.coarse_blocks, start=1)]
        weight = self.conv_down.weight.permute(0, 2, 3, 1).flatten(1)
        rows, finished = cells[torch.cat(index)], []
        for count in counts:
            rows = F.linear(rows.reshape(rows.shape[0] // 4, weight.shape[1]), weight, self.conv_down.bias)
            done, rows = rows.split([count, rows.shape[0] - count])
            finished.append(done)
        details = torch.cat(finished)
        return details if self.zero_mlp is None else self.zero_mlp(details)


def position_tables(table: Tensor, layout: TokenLayout, anchor: str = 'interpolated') -> Tensor:
    """Positions of the patches of all scales, fine to coarse, each scale in the tokens' order.

    Args:
        table, anchor: see ``position_maps``.
        layout: of H x W cells; only its sizes are used.

    Returns:
        (H * W + H * W / 4 + ... + H * W / 4**(S - 1), C): ``layout.position_index`` are its rows.
    """
    ordered = [layout.order(grid[None], scale)
               for scale, grid in enumerate(position_maps(table, layout.num_scales, anchor))]
    return torch.cat(ordered) if len(ordered) > 1 else ordered[0]


def position_maps(table: Tensor, num_scales: int, anchor: str = 'interpolated') -> list[Tensor]:
    """Positions of the patches of each scale, fine to coarse: S maps (H / 2**s, W / 2**s, C).

    Args:
        table: (H, W, C), at the grid of cells.
        anchor: how a coarse patch gets its own: 'interpolated', the table resampled to the coarser grid (bicubic,
            antialias); 'corner', that of its top-left cell; 'center', the table sampled at its centre, which is the
            mean of the four cells around that.

    Source: the public code, which resamples the table to the coarser grid; so does the camera-ready paper.
    """
    height, width = table.shape[:2]
    return [table, *(sample_table(table, 1 << scale, anchor) if anchor != 'interpolated' else
                     resample_table(table, height >> scale, width >> scale, antialias=True)
                     for scale in range(1, num_scales))]
