"""APT-EVA-02: EVA-02 on packed tokens of adaptive size, expanded to dense feature maps."""
import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apt_dense.core.attention import check_backend, takes_lengths_from_device
from apt_dense.core.block import Block
from apt_dense.core.chooser import IMAGENET_MEAN, IMAGENET_STD, PatchChooser
from apt_dense.core.derived import DerivedTensors, product_dtype
from apt_dense.core.embed import AdaptivePatchEmbed, position_tables
from apt_dense.core.graphs import BlockGraphs, PackedInputs
from apt_dense.core.layers import BranchFactors, draw_drop_path
from apt_dense.core.layout import TokenLayout
from apt_dense.core.order import check_grid
from apt_dense.core.position import resample_table
from apt_dense.core.rope import check_anchor, rope_table

# The detection models of the EVA-02 family; official detection checkpoints exist for B and L.  Official pre-trained Ti
# and S files have no ffn_ln in the MLP: they do not fit these blocks.
_EVERY_SECOND = (1, 3, 5, 7, 9, 11)
PRESETS = {
    'Ti': {'embed_dims': 192, 'depth': 12, 'num_heads': 3, 'global_block_indexes': _EVERY_SECOND},
    'S': {'embed_dims': 384, 'depth': 12, 'num_heads': 6, 'global_block_indexes': _EVERY_SECOND},
    'B': {'embed_dims': 768, 'depth': 12, 'num_heads': 12, 'global_block_indexes': _EVERY_SECOND,
          'drop_path_rate': 0.1},
    'L': {'embed_dims': 1024, 'depth': 24, 'num_heads': 16, 'global_block_indexes': (2, 5, 8, 11, 14, 17, 20, 23),
          'drop_path_rate': 0.4},
}


class APTEVA02(nn.Module):
    """EVA-02 that gives smooth regions large patches.

    A normalised (B, 3, H, W) image is scored, cut into patches of adaptive size, embedded, and processed as one packed
    sequence; every requested block's tokens are repeated over the cells that they cover.  ``num_scales=1,
    thresholds=()`` is the dense EVA-02, by the same code.

    Args:
        img_size: training image size in pixels, one number or (height, width).  Only checked against the window and the
            largest patch: positions follow the size of each input.
        patch_size: side of a base patch in pixels.
        embed_dims, depth, num_heads: sizes of the transformer.
        mlp_ratio: the MLP has int(embed_dims * mlp_ratio) units.
        window_size: cells a side of a window; 0 for full attention in every block.
        global_block_indexes: blocks that attend over the whole image; the others attend inside windows.  Where all
            blocks are named there are no windows, and window_size counts as 0.
        drop_path_rate: of the last block; it grows linearly from 0 at the first.
        out_indices: blocks whose output is returned, in the order of the blocks; -1 is the last.
        with_cls_token: put a class token into the sequence (segmentation).
        pretrain_img_size: image size of the position table in pixels: the table has (pretrain_img_size / patch_size)**2
            entries and one for a class token, which is there in every EVA-02 checkpoint.
        num_scales: S; the largest patch is 2**(S - 1) base patches a side.
        thresholds: S - 1 numbers, fine to coarse: a patch whose score is below its scale's threshold is kept whole.
        scorer: see ``PatchChooser``.
        detail_branch: see ``AdaptivePatchEmbed``.
        rope_anchor: 'corner' or 'center', see ``rope_table``.
        attn_backend: 'auto', 'flash_attn', 'torch_varlen', 'fa3', 'fa4' or 'sdpa', see ``varlen_attention``.
        compiled: fuse the scorer, and all of the blocks but their attention, by torch.compile.  The first passes in
            each precision and gradient mode compile; other numbers of tokens don't compile again.  (Tried with torch
            2.13.  Before 2.5, torch does not take a module's parameters as inputs unless told to, and would compile
            every block on its own.)
        with_cp: recompute the activations of the embedding and of each block in the backward pass, to save memory.
        max_tokens, max_tokens_per, img_mean, img_std: see ``PatchChooser``.
        pad_mlp: compute the MLP at a width that is a multiple of 16, see ``SwiGLU``.  EVA-02-L's is 2730, rows of which
            a GPU's matrix products are slow; whether it pays has not been measured.  For GPUs in half precision.
        keep_casts: under autocast, keep the half-precision copies of weights into which no gradient flows instead of
            making them in each pass, see ``ProductWeights``: for inference, and for training with frozen blocks.
        graph_tokens: without gradients, pad the tokens to multiples of this number, and run the blocks as one CUDA
            graph for each, see ``BlockGraphs``; None for none.  Not run on a GPU yet; for one or two images at 512 px.

    Attributes:
        chooser: the ``PatchChooser`` that lays the tokens out.
        last_layout: of the last forward pass, for logging.

    Raises:
        ValueError: for an argument that is unknown or does not fit the others.

    Source: EVA-02 (arXiv 2303.11331), its detection and segmentation code; APT (arXiv 2510.18091).
    """

    def __init__(self, img_size: int | tuple[int, int] = 1536, patch_size: int = 16, embed_dims: int = 768,
                 depth: int = 12, num_heads: int = 12, mlp_ratio: float = 4 * 2 / 3, window_size: int = 32,
                 global_block_indexes: Sequence[int] = (1, 3, 5, 7, 9, 11), drop_path_rate: float = 0.0,
                 out_indices: Sequence[int] = (-1,), with_cls_token: bool = False, pretrain_img_size: int = 224,
                 num_scales: int = 1, thresholds: Sequence[float] = (), scorer: str = 'entropy',
                 detail_branch: str = 'zero', rope_anchor: str = 'corner', attn_backend: str = 'auto',
                 compiled: bool = False, with_cp: bool = False, max_tokens: int | None = None,
                 max_tokens_per: str = 'image', img_mean: Sequence[float] = IMAGENET_MEAN,
                 img_std: Sequence[float] = IMAGENET_STD, pad_mlp: bool = False, keep_casts: bool = False,
                 graph_tokens: int | None = None):
        super().__init__()
        if not isinstance(depth, int) or depth < 1:
            raise ValueError(f'depth={depth!r} must be a whole number from 1 on')
        if embed_dims % num_heads or embed_dims // num_heads % 4:
            raise ValueError(f'embed_dims={embed_dims} over num_heads={num_heads} gives no head of a multiple of 4 '
                             'channels, which RoPE needs')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate={drop_path_rate} must be at least 0 and less than 1')
        self.global_blocks = self._block_indexes('global_block_indexes', global_block_indexes, depth)
        self.chooser = self.build_chooser(
            patch_size=patch_size, depth=depth, window_size=window_size, global_block_indexes=global_block_indexes,
            with_cls_token=with_cls_token, num_scales=num_scales, thresholds=thresholds, scorer=scorer,
            compiled=compiled, max_tokens=max_tokens, max_tokens_per=max_tokens_per, img_mean=img_mean,
            img_std=img_std)
        check_anchor(rope_anchor)
        check_backend(attn_backend)
        height_px, width_px = (img_size, img_size) if isinstance(img_size, int) else img_size
        if height_px % patch_size or width_px % patch_size or pretrain_img_size % patch_size:
            raise ValueError(f'img_size={img_size} and pretrain_img_size={pretrain_img_size} must be multiples of '
                             f'patch_size={patch_size}')
        check_grid(height_px // patch_size, width_px // patch_size, self.window_size, num_scales, patch_size)
        self.patch_size = patch_size
        self.embed_dims = embed_dims
        self.head_dim = embed_dims // num_heads
        self.num_scales = num_scales
        self.rope_anchor = rope_anchor
        self.with_cp = with_cp
        self.out_indices = self._block_indexes('out_indices', out_indices, depth)

        self.patch_embed = AdaptivePatchEmbed(patch_size, embed_dims, num_scales, detail_branch)
        self.pos_embed = nn.Parameter(torch.zeros(1, (pretrain_img_size // patch_size)**2 + 1, embed_dims))
        if graph_tokens is not None and (not isinstance(graph_tokens, int) or graph_tokens < 1):
            raise ValueError(f'graph_tokens={graph_tokens!r} must be a whole number from 1 on, or None')
        self.graphs = None if graph_tokens is None else BlockGraphs(graph_tokens)
        self.tables = DerivedTensors(most=4)  # position tables of so many grids
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dims)) if with_cls_token else None
        self.blocks = nn.ModuleList(
            Block(embed_dims, num_heads, mlp_ratio, drop_path_rate * index / max(depth - 1, 1), attn_backend,
                  compiled, pad_mlp, keep_casts)
            for index in range(depth))
        self.last_layout: TokenLayout | None = None
        self._init_parameters()

    @classmethod
    def from_preset(cls, name: str, **overrides) -> 'APTEVA02':
        """Build the detection model Ti, S, B or L; ``overrides`` replace or add arguments.

        Raises:
            ValueError: for an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f'unknown preset {name!r}: choose one of {sorted(PRESETS)}')
        return cls(**{**PRESETS[name], **overrides})

    @classmethod
    def build_chooser(cls, **arguments) -> PatchChooser:
        """The chooser of a model with these arguments, without the model.

        Raises:
            TypeError: for an argument that the class does not have.
            ValueError: for a wrong one, of those that the chooser depends on.
        """
        bound = inspect.signature(APTEVA02.__init__).bind(None, **arguments)
        bound.apply_defaults()
        given = bound.arguments
        blocks = cls._block_indexes('global_block_indexes', given['global_block_indexes'], given['depth'])
        names = ('num_scales', 'thresholds', 'scorer', 'patch_size', 'max_tokens', 'max_tokens_per', 'img_mean',
                 'img_std', 'compiled')
        return PatchChooser(**{name: given[name] for name in names}, has_cls_token=given['with_cls_token'],
                            window_size=0 if len(blocks) == given['depth'] else given['window_size'])

    @property
    def window_size(self) -> int:
        """Cells a side of a window; 0 where all blocks attend over the whole image."""
        return self.chooser.window_size

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

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W), normalised -> one (B, C, H / patch_size, W / patch_size) for each of ``out_indices``.

        Raises:
            ValueError: if the grid is not a multiple of the window (or of the largest patch), or a pixel is not finite.
        """
        return self.forward_layout(x, self.make_layout(x))

    def forward_layout(self, x: Tensor, layout: TokenLayout) -> tuple[Tensor, ...]:
        """``forward`` with patches that are chosen already."""
        self.last_layout = layout
        recompute = self.with_cp and torch.is_grad_enabled()
        x = checkpoint(self.embed, x, layout, use_reentrant=False, preserve_rng_state=False) if recompute else (
            self.embed(x, layout))
        dtype = torch.promote_types(x.dtype, torch.float32)
        local, whole = (rope_table(layout, self.head_dim, windowed, self.rope_anchor, dtype) if wanted else None
                        for windowed, wanted in ((True, self.window_size > 0), (False, True)))
        inputs = PackedInputs(x, layout.windows, layout.images, local, whole)
        factors = draw_drop_path([block.drop_path for block in self.blocks], layout.images, product_dtype(x))
        if self.graphs is None or torch.is_grad_enabled() or any(factor is not None for factor, _ in factors):
            outputs = self._run_blocks(inputs, factors, recompute)
        else:
            query = x.new_empty(0, 1, self.head_dim, dtype=product_dtype(x))
            outputs = self.graphs(lambda packed: self._run_blocks(packed, factors, False), inputs,
                                  list(self.blocks.parameters()), x.is_cuda and (inputs.whole or (
                                      takes_lengths_from_device(query, self.blocks[0].attn.backend))))
        return tuple(layout.expand(output) for output in outputs)

    def _run_blocks(self, inputs: PackedInputs, factors: Sequence[BranchFactors], recompute: bool) -> list[Tensor]:
        """The packed outputs of the blocks of ``out_indices``."""
        x, outputs = inputs.x, []
        for index, block in enumerate(self.blocks):
            local = self.window_size > 0 and index not in self.global_blocks
            runs, rope = (inputs.windows, inputs.local_rope) if local else (inputs.images, inputs.global_rope)
            arguments = (x, runs, rope, factors[index])
            # Nothing in a block is drawn, so no state of a generator is kept for the recomputation.
            x = checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False) if recompute else (
                block(*arguments))
            if index in self.out_indices:
                outputs.append(x)
        return outputs

    def make_layout(self, x: Tensor) -> TokenLayout:
        """(B, 3, H, W), normalised -> the layout of its tokens; see ``PatchChooser.layout``."""
        return self.chooser.layout(x)

    def embed(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """(B, 3, H, W) and its layout -> (T, C): embedded patches with positions, class tokens included."""
        sizes = (layout.height, layout.width, layout.window_size, layout.num_scales)
        positions = self.tables.get(sizes, [self.pos_embed], lambda: position_tables(
            self.position_table(layout.height, layout.width), layout))
        if self.cls_token is None:
            return self.patch_embed(x, layout, positions)
        cls_row = (self.cls_token + self.pos_embed[:, :1])[0]
        patches = self.patch_embed(x, layout.without_cls_tokens, positions)
        lengths = [length - 1 for length in layout.images.lengths]
        return torch.cat([part for image in patches.split(lengths) for part in (cls_row.to(patches.dtype), image)])

    def position_table(self, height: int, width: int) -> Tensor:
        """The position table (H, W, C) at a grid of cells: resampled (bicubic, no antialias) from the trained one."""
        side = round((self.pos_embed.shape[1] - 1)**0.5)
        table = self.pos_embed[0, 1:].unflatten(0, (side, side))
        return resample_table(table, height, width)

    @staticmethod
    def _block_indexes(name: str, indexes: Sequence[int], depth: int) -> frozenset[int]:
        """Resolve negative indexes; raise ValueError for one out of range."""
        outside = [index for index in indexes if not -depth <= index < depth]
        if outside:
            raise ValueError(f'{name} holds {outside}, but depth={depth}')
        return frozenset(index % depth for index in indexes)

    def _init_parameters(self) -> None:
        """Truncated normal of 0.02, and residual branches shrunk with depth, as EVA-02 starts from scratch.

        The added parameters of the patch embedding keep their own start.
        """
        for parameter in (self.pos_embed, self.cls_token, self.patch_embed.proj.weight):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        nn.init.zeros_(self.patch_embed.proj.bias)
        for depth, block in enumerate(self.blocks, start=1):
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            with torch.no_grad():
                block.attn.proj.weight.div_((2 * depth)**0.5)
                block.mlp.w3.weight.div_((2 * depth)**0.5)
