"""APT-EVA-02: EVA-02's blocks, sizes and start."""
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from apt_dense.core.arguments import check_arguments, check_heads, mlp_units, table_side
from apt_dense.core.block import Attention, Block
from apt_dense.core.chooser import PatchChooser
from apt_dense.core.layers import SwiGLU
from apt_dense.core.normalisation import IMAGENET_MEAN, IMAGENET_STD
from apt_dense.core.rope import Rotary
from apt_dense.core.vit import PackedViT

REFERENCE_CELLS = 16  # EVA-02 was pre-trained on 16 positions a side: all grids are scaled to that range
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


class EVA02Attention(Attention):
    """What EVA-02's attention learns: queries and values have a bias of their own, keys have none."""

    def __init__(self, embed_dims: int, num_heads: int, backend: str = 'auto', keep_casts: bool = False):
        super().__init__(embed_dims, num_heads, qkv_bias=False, backend=backend, keep_casts=keep_casts)
        self.q_bias = nn.Parameter(torch.zeros(embed_dims))
        self.v_bias = nn.Parameter(torch.zeros(embed_dims))

    def biases(self) -> tuple[Tensor, None, Tensor]:
        """Of queries, keys and values."""
        return self.q_bias, None, self.v_bias


class APTEVA02(PackedViT):
    """EVA-02 that gives smooth regions large patches, see ``PackedViT``.

    Args:
        img_size, patch_size, window_size, global_block_indexes, drop_path_rate, out_indices, with_cls_token: see
            ``PackedViT``.
        embed_dims, depth, num_heads: sizes of the transformer.
        mlp_ratio: the MLP has int(embed_dims * mlp_ratio) units.
        pretrain_img_size: image size of the position table in pixels: the table has (pretrain_img_size / patch_size)**2
            entries and one for a class token, which is there in every EVA-02 checkpoint.
        num_scales, thresholds, scorer, detail_branch, rope_anchor, pos_anchor, attn_backend, compiled, with_cp,
            max_tokens, max_tokens_per, img_mean, img_std, graph_tokens, proportional_attention, reduction: see
            ``PackedViT``.
        pad_mlp: compute the MLP at a width that is a multiple of 16, see ``SwiGLU``.  EVA-02-L's is 2730, rows of which
            a GPU's matrix products are slow; whether it pays has not been measured.  For GPUs in half precision.
        keep_casts: under autocast, keep the half-precision copies of weights into which no gradient flows instead of
            making them in each pass, see ``ProductWeights``: for inference, and for training with frozen blocks.

    Raises:
        ValueError: for an argument that is unknown or does not fit the others.

    Source: EVA-02 (arXiv 2303.11331), its detection and segmentation code; APT (arXiv 2510.18091).
    """
    presets = PRESETS

    def __init__(self, img_size: int | tuple[int, int] = 1536, patch_size: int = 16, embed_dims: int = 768,
                 depth: int = 12, num_heads: int = 12, mlp_ratio: float = 4 * 2 / 3, window_size: int = 32,
                 global_block_indexes: Sequence[int] = (1, 3, 5, 7, 9, 11), drop_path_rate: float = 0.0,
                 out_indices: Sequence[int] = (-1,), with_cls_token: bool = False, pretrain_img_size: int = 224,
                 num_scales: int = 1, thresholds: Sequence[float] = (), scorer: str = 'entropy',
                 detail_branch: str = 'zero', rope_anchor: str = 'corner', attn_backend: str = 'auto',
                 compiled: bool = False, with_cp: bool = False, max_tokens: int | None = None,
                 max_tokens_per: str = 'image', img_mean: Sequence[float] = IMAGENET_MEAN,
                 img_std: Sequence[float] = IMAGENET_STD, pad_mlp: bool = False, keep_casts: bool = False,
                 graph_tokens: int | None = None, pos_anchor: str = 'interpolated',
                 proportional_attention: bool = False, reduction: Mapping | None = None):
        check_arguments(pad_mlp=pad_mlp, keep_casts=keep_casts)
        head_dim = check_heads(embed_dims, num_heads, 4)
        hidden_dims = mlp_units(embed_dims, mlp_ratio, int)

        def make_block(drop_path_rate: float) -> Block:
            return Block(EVA02Attention(embed_dims, num_heads, attn_backend, keep_casts),
                         SwiGLU(embed_dims, hidden_dims, pad_mlp, keep_casts), drop_path_rate,
                         compiled=compiled)

        super().__init__(
            make_block, Rotary.over_reference(head_dim, REFERENCE_CELLS), embed_dims=embed_dims, depth=depth,
            table_cells=table_side(pretrain_img_size, patch_size), prefix_positions=1, img_size=img_size,
            patch_size=patch_size, window_size=window_size, global_block_indexes=global_block_indexes,
            drop_path_rate=drop_path_rate, out_indices=out_indices, with_cls_token=with_cls_token,
            num_scales=num_scales, thresholds=thresholds, scorer=scorer, detail_branch=detail_branch,
            rope_anchor=rope_anchor, pos_anchor=pos_anchor, attn_backend=attn_backend, compiled=compiled,
            with_cp=with_cp, max_tokens=max_tokens, max_tokens_per=max_tokens_per, img_mean=img_mean, img_std=img_std,
            graph_tokens=graph_tokens, proportional_attention=proportional_attention, reduction=reduction)

    @classmethod
    def _build_chooser(cls, **arguments) -> PatchChooser:
        """EVA-02 has a class token or windows, not both."""
        chooser = super()._build_chooser(**arguments)
        if chooser.num_prefix and chooser.window_size:
            raise ValueError(f'window_size={chooser.window_size} with a class token: set window_size=0, EVA-02 with a '
                             'class token sees the whole image in every block')
        return chooser

    def _init_parameters(self) -> None:
        """As every ViT, and residual branches shrunk with depth, as EVA-02 starts from scratch."""
        super()._init_parameters()
        for depth, block in enumerate(self.blocks, start=1):
            with torch.no_grad():
                block.attn.proj.weight.div_((2 * depth)**0.5)
                block.mlp.w3.weight.div_((2 * depth)**0.5)
