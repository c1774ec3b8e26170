"""APTViT: the plain vision transformer and its relatives: MAE, AugReg, DeiT, DINOv2, CLIP's image encoder."""
from pathlib import Path

from apt_dense.core.arguments import check_arguments, check_choice, check_heads, check_names, mlp_units, table_side
from apt_dense.core.block import Attention, Block
from apt_dense.core.layers import MLPS, build_mlp
from apt_dense.core.normalisation import CLIP_MEAN, CLIP_STD, HALF_MEAN, HALF_STD
from apt_dense.core.vit import PackedViT

_SIZES = {
    'ti': dict(embed_dims=192, depth=12, num_heads=3), 's': dict(embed_dims=384, depth=12, num_heads=6),
    'b': dict(embed_dims=768, depth=12, num_heads=12), 'l': dict(embed_dims=1024, depth=24, num_heads=16),
    'h': dict(embed_dims=1280, depth=32, num_heads=16, patch_size=14)}
_GIANT = dict(embed_dims=1536, depth=40, num_heads=24, mlp='swiglu', mlp_ratio=4096 / 1536)
_DINOV2 = dict(patch_size=14, img_size=518, pretrain_img_size=518, layer_scale=1e-5)
_REGISTERS = dict(num_registers=4, resampling='bicubic_antialias')
_CLIP = dict(pre_norm=True, patch_bias=False, mlp='quick_gelu', norm_eps=1e-5, img_mean=CLIP_MEAN, img_std=CLIP_STD)
PRESETS = {
    **{f'mae_{size}': _SIZES[size] for size in 'blh'},
    **{f'deit_{size}': _SIZES[size] for size in ('ti', 's', 'b')},
    **{f'augreg_{size}': dict(_SIZES[size], img_mean=HALF_MEAN, img_std=HALF_STD) for size in ('ti', 's', 'b', 'l')},
    **{f'dinov2_{size}': dict(_SIZES[size], **_DINOV2) for size in 'sbl'},
    **{f'dinov2_reg_{size}': dict(_SIZES[size], **_DINOV2, **_REGISTERS) for size in 'sbl'},
    'dinov2_g': dict(_GIANT, **_DINOV2), 'dinov2_reg_g': dict(_GIANT, **_DINOV2, **_REGISTERS),
    'clip_b': dict(_SIZES['b'], **_CLIP), 'clip_l': dict(_SIZES['l'], patch_size=14, **_CLIP),
    'clip_l_336': dict(_SIZES['l'], patch_size=14, img_size=336, pretrain_img_size=336, **_CLIP)}


class APTViT(PackedViT):
    """The plain vision transformer, with patches of adaptive size, see ``PackedViT``.

    Args:
        img_size, patch_size, with_cls_token, num_registers, prefix_positions, resampling, pre_norm, final_norm,
            norm_eps: see ``PackedViT``.
        embed_dims, depth, num_heads: sizes of the transformer.
        mlp: 'gelu', 'quick_gelu' (CLIP) or 'swiglu' (DINOv2-g).
        mlp_ratio: the MLP has round(embed_dims * mlp_ratio) units.
        pretrain_img_size: image size of the position table in pixels.
        qkv_bias: queries, keys and values have a bias.
        layer_scale: the start of LayerScale (DINOv2); None for none.
        attn_backend, compiled: see ``PackedViT``.
        pad_mlp, keep_casts: see ``APTEVA02``; the first for 'swiglu'.
        options: of ``PackedViT``.

    Raises:
        ValueError: for an argument that is unknown or does not fit the others.

    Source: ViT (arXiv 2010.11929), MAE (2111.06377), AugReg (2106.10270), DeiT (2012.12877), DINOv2 (2304.07193) and
    its registers (2309.16588), CLIP (2103.00020).
    """
    presets = PRESETS

    def __init__(self, img_size: int | tuple[int, int] = 224, patch_size: int = 16, embed_dims: int = 768,
                 depth: int = 12, num_heads: int = 12, mlp: str = 'gelu', mlp_ratio: float = 4.0,
                 pretrain_img_size: int = 224, with_cls_token: bool = True, num_registers: int = 0,
                 prefix_positions: int = 1, resampling: str = 'bicubic', qkv_bias: bool = True,
                 layer_scale: float | None = None, pre_norm: bool = False, final_norm: bool = True,
                 norm_eps: float = 1e-6, attn_backend: str = 'auto', compiled: bool = False, pad_mlp: bool = False,
                 keep_casts: bool = False, **options):
        check_names(type(self), options)
        check_arguments(qkv_bias=qkv_bias, layer_scale=layer_scale, norm_eps=norm_eps, pad_mlp=pad_mlp,
                        keep_casts=keep_casts)
        check_choice('mlp', mlp, MLPS)
        check_heads(embed_dims, num_heads, 1)
        hidden_dims = mlp_units(embed_dims, mlp_ratio)

        def make_block(drop_path_rate: float) -> Block:
            attention = Attention(embed_dims, num_heads, qkv_bias, backend=attn_backend, keep_casts=keep_casts)
            units = build_mlp(mlp, embed_dims, hidden_dims, pad_mlp, keep_casts)
            return Block(attention, units, drop_path_rate, norm_eps, layer_scale, compiled)

        super().__init__(
            make_block, None, embed_dims=embed_dims, depth=depth, table_cells=table_side(pretrain_img_size, patch_size),
            img_size=img_size, patch_size=patch_size, with_cls_token=with_cls_token, num_registers=num_registers,
            prefix_positions=prefix_positions, resampling=resampling, pre_norm=pre_norm, final_norm=final_norm,
            norm_eps=norm_eps, attn_backend=attn_backend, compiled=compiled, **options)

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path, **overrides) -> 'APTViT':
        """A model with published weights, in eval mode; see ``load_pretrained``."""
        from apt_dense.core.pretrained import load_pretrained  # which knows all families
        return load_pretrained(cls, path_or_name, overrides)
