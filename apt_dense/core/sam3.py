"""APTSAM3: the image encoder of SAM 3."""
from collections.abc import Sequence
from pathlib import Path

from apt_dense.core.arguments import check_arguments, check_heads, check_names, mlp_units, table_side
from apt_dense.core.block import Attention, Block
from apt_dense.core.layers import MLP
from apt_dense.core.normalisation import HALF_MEAN, HALF_STD
from apt_dense.core.rope import Rotary
from apt_dense.core.vit import PackedViT

PRESETS = {'sam3': {}}


class APTSAM3(PackedViT):
    """SAM 3's image encoder, up to its neck, with patches of adaptive size, see ``PackedViT``.

    Args:
        img_size, patch_size, window_size, global_block_indexes, norm_eps, img_mean, img_std: see ``PackedViT``.
        embed_dims, depth, num_heads: sizes of the transformer.
        mlp_ratio: the MLP has round(embed_dims * mlp_ratio) units.
        pretrain_img_size: image size of the position table in pixels, which is repeated over larger images.
        rope_cells: the grid of the rotations, in cells a side: a whole image's positions are scaled to it.
        attn_backend, compiled: see ``PackedViT``.
        keep_casts: see ``APTEVA02``.
        options: of ``PackedViT``.

    Raises:
        ValueError: for an argument that is unknown or does not fit the others.

    Source: SAM 3's encoder, as transformers has it.
    """
    presets = PRESETS
    fixed = dict(resampling='tiled', patch_bias=False, pre_norm=True)

    def __init__(self, img_size: int | tuple[int, int] = 1008, patch_size: int = 14, embed_dims: int = 1024,
                 depth: int = 32, num_heads: int = 16, mlp_ratio: float = 4.625, pretrain_img_size: int = 336,
                 window_size: int = 24, global_block_indexes: Sequence[int] = (7, 15, 23, 31), rope_cells: int = 24,
                 norm_eps: float = 1e-6, img_mean: Sequence[float] = HALF_MEAN, img_std: Sequence[float] = HALF_STD,
                 attn_backend: str = 'auto', compiled: bool = False, keep_casts: bool = False, **options):
        check_names(type(self), options)
        check_arguments(rope_cells=rope_cells, norm_eps=norm_eps, keep_casts=keep_casts)
        head_dim = check_heads(embed_dims, num_heads, 4)
        hidden_dims = mlp_units(embed_dims, mlp_ratio)

        def make_block(drop_path_rate: float) -> Block:
            return Block(Attention(embed_dims, num_heads, backend=attn_backend, keep_casts=keep_casts),
                         MLP(embed_dims, hidden_dims, keep_casts=keep_casts), drop_path_rate,
                         norm_eps, compiled=compiled)

        super().__init__(
            make_block, Rotary.over_reference(head_dim, rope_cells, column_first=True), embed_dims=embed_dims,
            depth=depth, table_cells=table_side(pretrain_img_size, patch_size), img_size=img_size,
            patch_size=patch_size, window_size=window_size, global_block_indexes=global_block_indexes,
            norm_eps=norm_eps, img_mean=img_mean, img_std=img_std, attn_backend=attn_backend, compiled=compiled,
            **self.fixed, **options)

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path, **overrides) -> 'APTSAM3':
        """A model with published weights, in eval mode; see ``load_pretrained``."""
        from apt_dense.core.pretrained import load_pretrained  # which knows all families
        return load_pretrained(cls, path_or_name, overrides)
