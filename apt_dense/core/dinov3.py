"""APTDINOv3: DINOv3's vision transformers."""
from pathlib import Path

from apt_dense.core.arguments import check_arguments, check_choice, check_heads, check_names, mlp_units
from apt_dense.core.block import Attention, Block
from apt_dense.core.layers import MLPS, build_mlp
from apt_dense.core.rope import Rotary
from apt_dense.core.vit import PackedViT

PRESETS = {
    'S': dict(embed_dims=384, depth=12, num_heads=6),
    'S+': dict(embed_dims=384, depth=12, num_heads=6, mlp='swiglu'),
    'B': dict(embed_dims=768, depth=12, num_heads=12),
    'L': dict(embed_dims=1024, depth=24, num_heads=16),
    'H+': dict(embed_dims=1280, depth=32, num_heads=20, mlp='swiglu'),
    '7B': dict(embed_dims=4096, depth=40, num_heads=32, mlp='swiglu', mlp_ratio=2.0, qkv_bias=False)}


class APTDINOv3(PackedViT):
    """DINOv3 with patches of adaptive size, see ``PackedViT``.

    A class token and four registers stand before each image's patches; positions are rotations alone.

    Args:
        img_size, patch_size, with_cls_token, num_registers, final_norm, norm_eps: see ``PackedViT``.
        embed_dims, depth, num_heads: sizes of the transformer.
        mlp: 'gelu' or 'swiglu' (S+, H+ and 7B).
        mlp_ratio: the MLP has round(embed_dims * mlp_ratio) units.
        qkv_bias: queries and values have a bias; keys have none.
        layer_scale: the start of LayerScale.
        rope_theta: the base of the frequencies of the rotations.
        attn_backend, compiled: see ``PackedViT``.
        pad_mlp, keep_casts: see ``APTEVA02``; the first for 'swiglu'.
        options: of ``PackedViT``.

    Raises:
        ValueError: for an argument that is unknown or does not fit the others.

    Source: DINOv3 (arXiv 2508.10104) and its public code.  There, training shifts, stretches and rescales the
    coordinates of the rotations at random; here it does not.
    """
    presets = PRESETS

    def __init__(self, img_size: int | tuple[int, int] = 224, patch_size: int = 16, embed_dims: int = 384,
                 depth: int = 12, num_heads: int = 6, mlp: str = 'gelu', mlp_ratio: float = 4.0,
                 with_cls_token: bool = True, num_registers: int = 4, qkv_bias: bool = True,
                 layer_scale: float | None = 1e-5, final_norm: bool = True, norm_eps: float = 1e-5,
                 rope_theta: float = 100.0, attn_backend: str = 'auto', compiled: bool = False, pad_mlp: bool = False,
                 keep_casts: bool = False, **options):
        check_names(type(self), options)
        check_arguments(qkv_bias=qkv_bias, layer_scale=layer_scale, norm_eps=norm_eps, rope_theta=rope_theta,
                        pad_mlp=pad_mlp, keep_casts=keep_casts)
        check_choice('mlp', mlp, MLPS)
        head_dim = check_heads(embed_dims, num_heads, 4)
        hidden_dims = mlp_units(embed_dims, mlp_ratio)

        def make_block(drop_path_rate: float) -> Block:
            attention = Attention(embed_dims, num_heads, qkv_bias, key_bias=False, rope_halves=True,
                                  backend=attn_backend, keep_casts=keep_casts)
            units = build_mlp(mlp, embed_dims, hidden_dims, pad_mlp, keep_casts)
            return Block(attention, units, drop_path_rate, norm_eps, layer_scale, compiled)

        super().__init__(
            make_block, Rotary.over_centers(head_dim, rope_theta), embed_dims=embed_dims, depth=depth, table_cells=0,
            img_size=img_size, patch_size=patch_size, with_cls_token=with_cls_token, num_registers=num_registers,
            final_norm=final_norm, norm_eps=norm_eps, attn_backend=attn_backend, compiled=compiled, **options)

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path, **overrides) -> 'APTDINOv3':
        """A model with published weights, in eval mode; see ``load_pretrained``."""
        from apt_dense.core.pretrained import load_pretrained  # which knows all families
        return load_pretrained(cls, path_or_name, overrides)
