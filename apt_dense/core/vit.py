"""PackedViT: the loop over blocks on packed tokens of adaptive size, for any plain vision transformer."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apt_dense.core.arguments import (
    RULES,
    block_indexes,
    check_arguments,
    check_choice,
    check_names,
    default_arguments,
    grid_of,
    output_indexes,
)
from apt_dense.core.attention import check_backend
from apt_dense.core.block import Block
from apt_dense.core.block_loop import block_outputs, last_rows
from apt_dense.core.chooser import PatchChooser
from apt_dense.core.derived import DerivedTensors
from apt_dense.core.dropping import EViT, Random
from apt_dense.core.embed import ADDED_PARAMETERS, AdaptivePatchEmbed
from apt_dense.core.embedding import embedded_rows, init_parameters, prefix_rows
from apt_dense.core.graphs import BlockGraphs
from apt_dense.core.importance import check_finite
from apt_dense.core.layer_order import layer_of
from apt_dense.core.layout import TokenLayout
from apt_dense.core.merging import DTEM
from apt_dense.core.normalisation import IMAGENET_MEAN, IMAGENET_STD
from apt_dense.core.order import check_grid
from apt_dense.core.position import RESAMPLINGS, table_at
from apt_dense.core.reduced import PackedRows
from apt_dense.core.reduction import Reduction
from apt_dense.core.reductions import build_reduction
from apt_dense.core.rope import Rotary, check_anchor


class PackedViT(nn.Module):
    """A vision transformer that gives smooth regions large patches.

    A normalised (B, 3, H, W) image is scored, cut into patches of adaptive size, embedded, and processed as one packed
    sequence; every requested block's tokens are repeated over the cells that they cover.  ``num_scales=1,
    thresholds=()`` is the dense model, by the same code.

    A family, such as ``APTEVA02``, is a subclass that makes the blocks and says what its models have.  Its arguments
    are its own and those below that have a default.

    Args:
        make_block: rate of drop path -> a block.  It is called once for each, in their order.
        rope: how the blocks turn queries and keys; None for a model without.
        embed_dims, depth: C and the number of blocks.
        table_cells: side of the square table of absolute positions; 0 for none.
        img_size: training image size in pixels, one number or (height, width).  Only checked against the window and the
            largest patch: positions follow the size of each input.
        patch_size: side of a base patch in pixels.
        window_size: cells a side of a window; 0 for full attention in every block.
        global_block_indexes: blocks that attend over the whole image; the others attend inside windows.  Where all
            blocks are named there are no windows, and window_size counts as 0.
        drop_path_rate: of the last block; it grows linearly from 0 at the first.
        out_indices: blocks whose output is returned, in the order of the blocks; -1 is the last.
        with_cls_token, num_registers: the prefix: rows before each image's patches, without a position of their own.
            In blocks with windows those of an image attend to each other only.
        prefix_positions: the table's first entries, for as many rows of the prefix.
        resampling: of the table to another grid: 'bicubic', 'bicubic_antialias' or 'tiled', repeated.
        patch_bias: the patch embedding has a bias.
        pre_norm, final_norm: a LayerNorm before the first block, and one on each returned output.
        norm_eps: of these two.
        num_scales: S; the largest patch is 2**(S - 1) base patches a side.
        thresholds: S - 1 numbers, fine to coarse: a patch whose score is below its scale's threshold is kept whole.
        scorer: see ``PatchChooser``.
        detail_branch: see ``AdaptivePatchEmbed``.
        rope_anchor: 'corner', 'center' or 'interpolated', see ``rope_table``.
        pos_anchor: the same for absolute positions, see ``position_tables``.
        attn_backend: 'auto', 'flash_attn', 'torch_varlen', 'fa3', 'fa4' or 'sdpa', see ``varlen_attention``.
        compiled: fuse the scorer, and all of the blocks but their attention, by torch.compile.  The first passes in
            each precision and gradient mode compile; other numbers of tokens don't compile again.  (Tried with torch
            2.11 and 2.13.  Before 2.5, torch does not take a module's parameters as inputs unless told to, and would
            compile every block on its own.)
        with_cp: recompute the activations of the embedding and of each block in the backward pass, to save memory.
        max_tokens, max_tokens_per, img_mean, img_std: see ``PatchChooser``.
        graph_tokens: without gradients, pad the tokens to multiples of this number, and run the blocks as one CUDA
            graph for each, see ``BlockGraphs``; None for none.  For one or two images at 512 px.
        proportional_attention: attention counts the key of a merged patch once for each base patch that it covers, by
            the logarithm of that number in the logits, see ``with_size_channels``: as if those base patches had equal
            keys and values.  With ``reduction`` rows begin with these sizes, and count by them whatever
            ``reduction.proportional`` says; not with DTEM, whose training sorts rows by sizes that begin at one.  Not
            in the paper; with ``num_scales=1`` nothing changes.
        reduction: tokens merged or dropped on the way, as ``dict(type='ToMe', kept=0.7)``, see ``build_reduction``.

    Attributes:
        chooser: the ``PatchChooser`` that lays the tokens out.
        last_layout: of the last forward pass, for logging.

    Raises:
        ValueError: for an argument that is unknown or does not fit the others.

    Source: APT (arXiv 2510.18091).
    """
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # published sizes: names -> arguments
    fixed: ClassVar[Mapping[str, Any]] = {}  # arguments of this class that a family sets by itself

    def __init__(self, make_block: Callable[[float], Block], rope: Rotary | None, *, embed_dims: int, depth: int,
                 table_cells: int, img_size: int | tuple[int, int] = 224, patch_size: int = 16, window_size: int = 0,
                 global_block_indexes: Sequence[int] = (), drop_path_rate: float = 0.0,
                 out_indices: Sequence[int] = (-1,), with_cls_token: bool = False, num_registers: int = 0,
                 prefix_positions: int = 0, resampling: str = 'bicubic', patch_bias: bool = True,
                 pre_norm: bool = False, final_norm: bool = False, norm_eps: float = 1e-6, num_scales: int = 1,
                 thresholds: Sequence[float] = (), scorer: str = 'entropy', detail_branch: str = 'zero',
                 rope_anchor: str = 'corner', pos_anchor: str = 'interpolated', attn_backend: str = 'auto',
                 compiled: bool = False, with_cp: bool = False, max_tokens: int | None = None,
                 max_tokens_per: str = 'image', img_mean: Sequence[float] = IMAGENET_MEAN,
                 img_std: Sequence[float] = IMAGENET_STD, graph_tokens: int | None = None,
                 proportional_attention: bool = False, reduction: Mapping | None = None):
        super().__init__()
        check_arguments(make_block=make_block, embed_dims=embed_dims, depth=depth, table_cells=table_cells,
                        drop_path_rate=drop_path_rate, num_registers=num_registers, prefix_positions=prefix_positions,
                        with_cls_token=with_cls_token, patch_bias=patch_bias, pre_norm=pre_norm, final_norm=final_norm,
                        norm_eps=norm_eps, with_cp=with_cp, graph_tokens=graph_tokens,
                        proportional_attention=proportional_attention)
        check_choice('resampling', resampling, RESAMPLINGS)
        check_anchor(rope_anchor)
        check_anchor(pos_anchor, 'pos_anchor')
        check_backend(attn_backend)
        self.global_blocks = block_indexes('global_block_indexes', global_block_indexes, depth)
        self.out_indices = output_indexes(out_indices, depth)
        self.chooser = self._build_chooser(
            patch_size=patch_size, depth=depth, window_size=window_size, global_block_indexes=global_block_indexes,
            with_cls_token=with_cls_token, num_registers=num_registers, num_scales=num_scales, thresholds=thresholds,
            scorer=scorer, compiled=compiled, max_tokens=max_tokens, max_tokens_per=max_tokens_per, img_mean=img_mean,
            img_std=img_std)
        check_grid(*grid_of(img_size, patch_size), self.window_size, num_scales, patch_size)
        self.patch_size = patch_size
        if 0 < self.num_prefix < prefix_positions and table_cells:
            raise ValueError(f'the table has {prefix_positions} positions for the prefix, which has {self.num_prefix} '
                             'rows: set prefix_positions, with_cls_token or num_registers')
        self.embed_dims = embed_dims
        self.num_scales = num_scales
        self.rope = rope
        self.rope_anchor = rope_anchor
        self.pos_anchor = pos_anchor
        self.resampling = resampling
        self.prefix_positions = prefix_positions
        self.with_cp = with_cp
        self.proportional_attention = proportional_attention

        self.patch_embed = AdaptivePatchEmbed(patch_size, embed_dims, num_scales, detail_branch, patch_bias)
        self.pos_embed = nn.Parameter(torch.zeros(1, prefix_positions + table_cells**2, embed_dims)) if (
            table_cells) else None
        self.graphs = None if graph_tokens is None else BlockGraphs(graph_tokens)
        self.tables = DerivedTensors(most=4)  # position tables of so many grids
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dims)) if with_cls_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, num_registers, embed_dims)) if num_registers else None
        self.norm_pre = nn.LayerNorm(embed_dims, eps=norm_eps) if pre_norm else None
        self.blocks = nn.ModuleList(make_block(drop_path_rate * index / max(depth - 1, 1)) for index in range(depth))
        self.norm = nn.LayerNorm(embed_dims, eps=norm_eps) if final_norm else None
        self._check_blocks()
        self._check_rope()
        self.reduction = None if reduction is None else self._build_reduction(reduction)
        self.last_layout: TokenLayout | None = None
        self._init_parameters()

    @classmethod
    def from_preset(cls, name: str | None = None, **overrides) -> Self:
        """Build a model of a published size; ``overrides`` replace or add arguments.

        Args:
            name: one of ``presets``; where there is one alone it may be left out.

        Raises:
            ValueError: for an unknown name; it lists those that there are.
        """
        names = tuple(cls.presets)
        name = names[0] if name is None and len(names) == 1 else name
        if name not in names:
            raise ValueError(f'unknown preset {name!r}: choose one of {sorted(names)}')
        return cls(**{**cls.presets[name], **overrides})

    @classmethod
    def build_chooser(cls, **arguments) -> PatchChooser:
        """The chooser of a model with these arguments, without the model.

        Raises:
            TypeError: for an argument that the class does not have.
            ValueError: for a wrong one, of those that the chooser depends on.
        """
        check_names(cls, arguments)
        return cls._build_chooser(**arguments)

    @classmethod
    def _build_chooser(cls, **arguments) -> PatchChooser:
        given = PackedViT.default_arguments() | cls.default_arguments() | dict(cls.fixed) | arguments
        check_arguments(**{name: value for name, value in given.items() if name in RULES})
        blocks = block_indexes('global_block_indexes', given['global_block_indexes'], given['depth'])
        names = ('num_scales', 'thresholds', 'scorer', 'patch_size', 'max_tokens', 'max_tokens_per', 'img_mean',
                 'img_std', 'compiled')
        return PatchChooser(**{name: given[name] for name in names},
                            num_prefix=bool(given['with_cls_token']) + given['num_registers'],
                            window_size=0 if len(blocks) == given['depth'] else given['window_size'])

    @classmethod
    def default_arguments(cls) -> dict[str, Any]:
        """The arguments that a model of the family takes: names -> defaults."""
        return default_arguments(cls, PackedViT)

    @property
    def window_size(self) -> int:
        """Cells a side of a window; 0 where all blocks attend over the whole image."""
        return self.chooser.window_size

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.blocks[0].attn.head_dim

    @property
    def counts_cells(self) -> bool:
        """Whether merged patches count in attention by their cells: ``proportional_attention``, where any can be."""
        return self.proportional_attention and self.num_scales > 1

    @property
    def num_prefix(self) -> int:
        """Rows before the patches of each image."""
        return self.chooser.num_prefix

    @property
    def size_divisor_px(self) -> int:
        """What the sides of an input must be multiples of, in pixels."""
        return self.chooser.size_divisor_px

    @property
    def thresholds(self) -> tuple[float, ...]:
        """S - 1 numbers, fine to coarse; setting them changes the chooser's."""
        return self.chooser.thresholds

    @thresholds.setter
    def thresholds(self, values: Sequence[float]) -> None:
        self.chooser.thresholds = values

    @property
    def added_parameters(self) -> tuple[str, ...]:
        """Names of the parameters that the dense twin does not have."""
        return tuple(name for name, _ in self.named_parameters() if name in ADDED_PARAMETERS)

    def layer_of(self, name: str) -> int:
        """The layer of a parameter, for layer-wise decay of the rate; see the function of this name."""
        return layer_of(name, len(self.blocks))

    def forward(self, x: Tensor, packed: bool = False) -> tuple[Tensor, ...] | PackedRows:
        """(B, 3, H, W), normalised -> one (B, C, H / patch_size, W / patch_size) for each of ``out_indices``.

        Args:
            packed: return the last block's rows instead, see ``forward_packed``; for models that pool them.

        Raises:
            ValueError: if the grid is not a multiple of the window (or of the largest patch), or a pixel is not finite.
        """
        layout = self.make_layout(x)
        return self.forward_packed(x, layout) if packed else self.forward_layout(x, layout)

    def forward_layout(self, x: Tensor, layout: TokenLayout) -> tuple[Tensor, ...]:
        """``forward`` with patches that are chosen already."""
        return tuple(layout.expand(self._normed(rows)) for rows in self.block_rows(x, layout, self.out_indices))

    def forward_tokens(self, x: Tensor, layout: TokenLayout | None = None) -> tuple[Tensor, TokenLayout]:
        """The last block's tokens, after the last norm, without expansion.

        Args:
            x: as for ``forward``.
            layout: patches that are chosen already.

        Returns:
            (T, C), the prefix rows before each image's patches, and the layout that says which row is what.
        """
        layout = self.make_layout(x) if layout is None else layout
        return self._normed(self.block_rows(x, layout, frozenset([len(self.blocks) - 1]))[0]), layout

    def forward_packed(self, x: Tensor, layout: TokenLayout | None = None) -> PackedRows:
        """The rows that the last block leaves, after the last norm; with a reduction fewer than ``forward_tokens``'.

        Args:
            x: as for ``forward``.
            layout: patches that are chosen already.
        """
        layout = self.make_layout(x) if layout is None else layout
        packed = last_rows(self, *self._start(x, layout))
        return packed._replace(rows=self._normed(packed.rows))

    def block_rows(self, x: Tensor, layout: TokenLayout, wanted: frozenset[int]) -> list[Tensor]:
        """The packed outputs of some blocks, before the last norm.

        Args:
            x: as for ``forward``.
            layout: its patches.
            wanted: numbers of blocks; -1 is what enters the first.

        Returns:
            (T, C) for each of them, in ascending order.

        Raises:
            ValueError: for a layout of other images, or of a model with other windows or prefix rows.
        """
        rows, layout, recompute, merged = self._start(x, layout)
        return block_outputs(self, rows, layout, wanted, recompute, merged)

    def _start(self, x: Tensor, layout: TokenLayout) -> tuple[Tensor, TokenLayout, bool, tuple[int, ...] | None]:
        """Embedded rows, their layout, whether to recompute, and how many rows ``Random`` is to keep."""
        self._check_layout(x, layout)
        self.last_layout = layout
        follows = isinstance(self.reduction, Random) and self.reduction.kept is None
        merged = self.chooser.layout(x).windows.lengths if follows else None
        recompute = self.with_cp and torch.is_grad_enabled()
        x = checkpoint(self.embed, x, layout, use_reentrant=False, preserve_rng_state=False) if recompute else (
            self.embed(x, layout))
        return x, layout, recompute, merged

    def _check_layout(self, x: Tensor, layout: TokenLayout) -> None:
        wanted = dict(batch_size=len(x), height=x.shape[2] // self.patch_size, width=x.shape[3] // self.patch_size,
                      window_size=self.window_size, num_prefix=self.num_prefix)
        wrong = [f'{name}={getattr(layout, name)}, wanted {value}' for name, value in wanted.items()
                 if getattr(layout, name) != value]
        if wrong:
            raise ValueError(f'the layout does not fit the images and the model: {"; ".join(wrong)}. Take it from '
                             'make_layout of this model and these images')

    def _check_blocks(self) -> None:
        others = sorted({type(block).__name__ for block in self.blocks if not isinstance(block, Block)})
        if others and self.counts_cells:
            raise ValueError(f'proportional_attention=True and blocks of {", ".join(others)}: only a Block is known to '
                             'count rows by BlockTokens.size_channels. Make it a subclass, or set False')

    def _check_rope(self) -> None:
        if self.rope is not None and (not isinstance(self.rope, Rotary) or self.rope.head_dim != self.head_dim):
            raise ValueError(f'rope={self.rope!r} must be None, or a Rotary with the channels of a head, head_dim='
                             f'{self.head_dim}')

    def _build_reduction(self, config: Mapping) -> Reduction:
        if self.graphs is not None:
            raise ValueError('graph_tokens and reduction: a graph has one number of rows, choose one of the two')
        reduction = build_reduction(config, len(self.blocks), self.embed_dims, self.head_dim)
        if isinstance(reduction, EViT) and (self.cls_token is None or self.window_size):
            raise ValueError("reduction.type='EViT' goes by the class token's attention to the whole image: it needs "
                             "with_cls_token=True and window_size=0, use 'ToMe' here")
        if isinstance(reduction, DTEM) and self.counts_cells:
            raise ValueError("reduction.type='DTEM' and proportional_attention=True: DTEM sorts rows by sizes that "
                             "begin at one, not by cells. Set proportional_attention=False, or take 'ToMe'")
        return reduction

    def _normed(self, rows: Tensor) -> Tensor:
        return rows if self.norm is None else self.norm(rows)

    def make_layout(self, x: Tensor) -> TokenLayout:
        """(B, 3, H, W), normalised -> the layout of its tokens; see ``PatchChooser.layout``.

        The layout of a model that keeps base patches at random is that of all of them.
        """
        if not isinstance(self.reduction, Random):
            return self.chooser.layout(x)
        self.chooser.check_shape(x)
        check_finite(x)
        height, width = (side // self.patch_size for side in x.shape[2:])
        return TokenLayout.dense(len(x), height, width, self.window_size, self.num_scales, self.num_prefix, x.device)

    def embed(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """(B, 3, H, W) and its layout -> (T, C): embedded patches with positions, prefix rows included."""
        return embedded_rows(self, x, layout)

    def prefix(self) -> Tensor:
        """The rows before each image's patches, with their positions: (P, C)."""
        return prefix_rows(self)

    def position_table(self, height: int, width: int) -> Tensor:
        """The position table (H, W, C) at a grid of cells, from the trained one by ``resampling``."""
        return table_at(self.pos_embed[0, self.prefix_positions:], height, width, self.resampling)

    def _init_parameters(self) -> None:
        """See ``init_parameters``; a family may change some of them after that."""
        init_parameters(self)
