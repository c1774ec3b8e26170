"""APT-EVA-02: EVA-02 on packed tokens of adaptive size, expanded to dense feature maps."""
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apt_dense.core.attention import check_backend
from apt_dense.core.block import Block
from apt_dense.core.embed import AdaptivePatchEmbed
from apt_dense.core.importance import check_finite, get_scorer, may_be_finite
from apt_dense.core.layout import TokenLayout, check_grid, padding_remedy
from apt_dense.core.position import resample_table
from apt_dense.core.quadtree import check_thresholds, fit_budgets, select_scales, share_budget
from apt_dense.core.rope import check_anchor, rope_table

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

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
        scorer: 'entropy', 'laplacian_mean', 'laplacian_max', 'laplacian_std' or 'upsampling_error'.
        detail_branch: see ``AdaptivePatchEmbed``.
        rope_anchor: 'corner' or 'center', see ``rope_table``.
        attn_backend: 'auto', 'flash_attn', 'torch_varlen' or 'sdpa', see ``varlen_attention``.
        compiled: fuse the scorer, and all of the blocks but their attention, by torch.compile.  The first passes
            compile; other numbers of tokens don't compile again.  (Tried with torch 2.13.  Before 2.5, torch does not
            take a module's parameters as inputs unless told to, and would compile every block on its own.)
        with_cp: recompute the activations of the embedding and of each block in the backward pass, to save memory.
        max_tokens: the most tokens, class tokens not counted, of one image or of one batch (``max_tokens_per``: 'image'
            or 'batch').  Where there are more, thresholds are raised image by image, see ``fit_budgets`` and
            ``share_budget``: no busy image costs more memory or time than that.  None sets no limit.
        img_mean, img_std: what the input was normalised with, to restore 0..255 for the scorer; RGB.

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
                 img_std: Sequence[float] = IMAGENET_STD):
        super().__init__()
        for name, value, least in (('num_scales', num_scales, 1), ('patch_size', patch_size, 1), ('depth', depth, 1),
                                   ('window_size', window_size, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f'{name}={value!r} must be a whole number from {least} on')
        if embed_dims % num_heads or embed_dims // num_heads % 4:
            raise ValueError(f'embed_dims={embed_dims} over num_heads={num_heads} gives no head of a multiple of 4 '
                             'channels, which RoPE needs')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate={drop_path_rate} must be at least 0 and less than 1')
        self.global_blocks = self._block_indexes('global_block_indexes', global_block_indexes, depth)
        if len(self.global_blocks) == depth:
            window_size = 0
        check_thresholds(thresholds, num_scales)
        self._check_budget(max_tokens, max_tokens_per, thresholds)
        check_anchor(rope_anchor)
        check_backend(attn_backend)
        if window_size and with_cls_token:
            raise ValueError(f'window_size={window_size} with a class token: set window_size=0')
        height_px, width_px = (img_size, img_size) if isinstance(img_size, int) else img_size
        if height_px % patch_size or width_px % patch_size or pretrain_img_size % patch_size:
            raise ValueError(f'img_size={img_size} and pretrain_img_size={pretrain_img_size} must be multiples of '
                             f'patch_size={patch_size}')
        check_grid(height_px // patch_size, width_px // patch_size, window_size, num_scales, patch_size)
        self.patch_size = patch_size
        self.embed_dims = embed_dims
        self.head_dim = embed_dims // num_heads
        self.window_size = window_size
        self.num_scales = num_scales
        self.thresholds = tuple(thresholds)
        self.scorer = get_scorer(scorer, compiled)
        self.rope_anchor = rope_anchor
        self.with_cp = with_cp
        self.max_tokens = max_tokens
        self.max_tokens_per = max_tokens_per
        self.out_indices = self._block_indexes('out_indices', out_indices, depth)
        self.img_mean, self.img_std = tuple(img_mean), tuple(img_std)  # no buffers: those follow the model's dtype

        self.patch_embed = AdaptivePatchEmbed(patch_size, embed_dims, num_scales, detail_branch)
        self.pos_embed = nn.Parameter(torch.zeros(1, (pretrain_img_size // patch_size)**2 + 1, embed_dims))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dims)) if with_cls_token else None
        self.blocks = nn.ModuleList(
            Block(embed_dims, num_heads, mlp_ratio, drop_path_rate * index / max(depth - 1, 1), attn_backend,
                  compiled)
            for index in range(depth))
        self.last_layout: TokenLayout | None = None  # of the last forward pass, for logging
        self.last_num_raised = 0  # images whose thresholds max_tokens raised in it
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

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W), normalised -> one (B, C, H / patch_size, W / patch_size) for each of ``out_indices``.

        Raises:
            ValueError: if the grid is not a multiple of the window (or of the largest patch), or a pixel is not finite.
        """
        layout = self.make_layout(x)
        self.last_layout = layout
        recompute = self.with_cp and torch.is_grad_enabled()
        x = checkpoint(self.embed, x, layout, use_reentrant=False) if recompute else self.embed(x, layout)
        windowed = self.window_size > 0
        dtype = torch.promote_types(x.dtype, torch.float32)
        tables = {True: rope_table(layout, self.head_dim, True, self.rope_anchor, dtype) if windowed else None,
                  False: rope_table(layout, self.head_dim, False, self.rope_anchor, dtype)}
        outputs = []
        for index, block in enumerate(self.blocks):
            local = windowed and index not in self.global_blocks
            arguments = (x, layout.windows if local else layout.images, tables[local], layout.images)
            x = checkpoint(block, *arguments, use_reentrant=False) if recompute else block(*arguments)
            if index in self.out_indices:
                outputs.append(layout.expand(x))
        return tuple(outputs)

    @torch.no_grad()
    def make_layout(self, x: Tensor) -> TokenLayout:
        """(B, 3, H, W), normalised -> the layout of its tokens.

        Scores are computed in float32 from the restored 0..255 image.

        Raises:
            ValueError: see ``forward``.
        """
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f'input has shape {tuple(x.shape)}, wanted (B, 3, H, W)')
        batch_size, _, height_px, width_px = x.shape
        if height_px % self.patch_size or width_px % self.patch_size or 0 in x.shape:
            raise ValueError(f'input is {height_px}x{width_px} px, wanted a multiple of patch_size={self.patch_size}: '
                             f'{padding_remedy((self.window_size or 2**(self.num_scales - 1)) * self.patch_size)}')
        height, width = height_px // self.patch_size, width_px // self.patch_size
        check_grid(height, width, self.window_size, self.num_scales, self.patch_size)
        has_cls_token = self.cls_token is not None
        if self.num_scales == 1:
            check_finite(x)
            return TokenLayout.dense(batch_size, height, width, self.window_size, 1, has_cls_token, x.device)
        arguments = (self.window_size, self.num_scales, has_cls_token, False)
        image = self._restore_image(x)
        with torch.autocast(x.device.type, enabled=False):
            merged = self.scorer(image, self.patch_size * 2, self.num_scales - 1, check=False)
        base = merged[0].new_empty(()).expand(batch_size, height, width)  # select_scales reads only its shape
        scores = [base, *merged]
        scales = select_scales(scores, self.thresholds)
        try:
            # A bad pixel makes every scale a bad one: the one wait, for the number of tokens, finds both.
            layout = TokenLayout.from_scales(scales.masked_fill(~may_be_finite(image), -1), *arguments)
        except ValueError:
            check_finite(image)
            layout = TokenLayout.from_scales(scales, *arguments)  # finite, only too large to be summed
        budgets = self._budgets([length - has_cls_token for length in layout.images.lengths])
        if not self.last_num_raised:
            return layout
        scales = fit_budgets(scores, self.thresholds, budgets)
        return TokenLayout.from_scales(scales, *arguments)

    def _budgets(self, counts: list[int]) -> list[int]:
        """The most tokens that each image may have, given how many it has; counts those that have too many."""
        budgets = counts
        if self.max_tokens is not None:
            budgets = (share_budget(counts, self.max_tokens) if self.max_tokens_per == 'batch'
                       else [self.max_tokens] * len(counts))
        self.last_num_raised = sum(count > budget for count, budget in zip(counts, budgets, strict=True))
        return budgets

    def embed(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """(B, 3, H, W) and its layout -> (T, C): embedded patches with positions, class tokens included."""
        table = self.position_table(layout.height, layout.width)
        if self.cls_token is None:
            return self.patch_embed(x, layout, table)
        cls_row = (self.cls_token + self.pos_embed[:, :1])[0]
        patches = self.patch_embed(x, layout.without_cls_tokens, table)
        lengths = [length - 1 for length in layout.images.lengths]
        return torch.cat([part for image in patches.split(lengths) for part in (cls_row.to(patches.dtype), image)])

    def position_table(self, height: int, width: int) -> Tensor:
        """The position table (H, W, C) at a grid of cells: resampled (bicubic, no antialias) from the trained one."""
        side = round((self.pos_embed.shape[1] - 1)**0.5)
        table = self.pos_embed[0, 1:].unflatten(0, (side, side))
        return resample_table(table, height, width)

    def _restore_image(self, x: Tensor) -> Tensor:
        """Undo the normalisation: float32, 0..255.

        Values are rounded to what the input's precision can tell, so that an image of whole numbers comes back exactly:
        the entropy's bins are half a grey level wide.
        """
        steps = 1024 if x.dtype in (torch.float32, torch.float64) else 1
        image = x.to(torch.float32, copy=True)
        for channel, mean, std in zip(image.unbind(1), self.img_mean, self.img_std, strict=True):
            channel.mul_(std * steps).add_(mean * steps)
        return image.round_().div_(steps)

    @staticmethod
    def _check_budget(max_tokens: int | None, per: str, thresholds: Sequence[float]) -> None:
        """Raise ValueError for a budget that can't be kept."""
        if per not in ('image', 'batch'):
            raise ValueError(f"max_tokens_per={per!r}: choose 'image' or 'batch'")
        if max_tokens is None:
            return
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise ValueError(f'max_tokens={max_tokens!r} must be a whole number from 1 on, or None')
        if not thresholds or not all(math.isfinite(threshold) for threshold in thresholds):
            raise ValueError(f'max_tokens={max_tokens} raises thresholds, and they are {tuple(thresholds)}: set '
                             'num_scales > 1 and finite thresholds')

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
