"""The packed twin of an encoder of transformers, on the same parameters."""
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from apt_dense.core.block import Block
from apt_dense.core.dinov3 import APTDINOv3
from apt_dense.core.embed import AdaptivePatchEmbed
from apt_dense.core.layers import MLP, DropPath
from apt_dense.core.plain_vit import APTViT
from apt_dense.core.sam3 import APTSAM3
from apt_dense.core.vit import PackedViT
from apt_dense.hf.families import Family
from apt_dense.hf.ties import Ties

# Of masked image modelling, which is refused, and of what comes after the last norm.
NOT_IN_TWIN = ('embeddings.mask_token', 'pooler.', 'post_layernorm.')
GATED = {'w1': 'gate_proj', 'w2': 'up_proj', 'w3': 'down_proj'}
PLAIN = {'fc1': 'fc1', 'fc2': 'fc2'}
PLAIN_DINOV3 = {'fc1': 'up_proj', 'fc2': 'down_proj'}


def build_packed(encoder: nn.Module, family: Family, options: Mapping[str, Any]) -> tuple[PackedViT, Ties]:
    """Build an encoder's packed twin.

    Args:
        encoder: of transformers.
        family: the encoder's.
        options: arguments of ``PackedViT``: num_scales, thresholds and what goes with them.

    Returns:
        The twin, and what ties its parameters to the encoder's.  Only what APT adds is its own, on the encoder's device
        and in its type.

    Raises:
        ValueError: for an encoder with a part that the twin would not have, or a wrong option.
    """
    _check_place(encoder)
    sizes = {**_sizes(encoder, family), **options}
    with torch.device('meta'):  # no memory and no time: every parameter is replaced
        packed = _MAKERS[family.packed](encoder, family, sizes)
    weight, bias = encoder.get_parameter(f'{family.projection}.weight'), packed.patch_embed.proj.bias
    with torch.device(weight.device):
        packed.patch_embed = AdaptivePatchEmbed(packed.patch_size, packed.embed_dims, packed.num_scales,
                                                options.get('detail_branch', 'zero'), bias is not None).to(weight.dtype)
    ties = _tie(packed, encoder, family)
    tied = ties.tied()
    unknown = [name for name, parameter in encoder.named_parameters()
               if id(parameter) not in tied and parameter.numel() and not name.startswith(NOT_IN_TWIN)]
    if unknown:
        raise ValueError(f'{type(encoder).__name__} has parameters that packed tokens would not see: {unknown[:5]}. '
                         'Adapt the model before anything is added to its encoder, or take that out')
    return packed, ties


def _check_place(encoder: nn.Module) -> None:
    """Raise ValueError for an encoder that is spread over devices or fetched from elsewhere layer by layer."""
    devices = sorted({str(parameter.device) for parameter in encoder.parameters()})
    hooks = [module._hf_hook for module in encoder.modules() if hasattr(module, '_hf_hook')]
    hooked = any(getattr(part, 'offload', True) for hook in hooks for part in getattr(hook, 'hooks', [hook]))
    if len(devices) > 1 or hooked:
        hooks = ', with hooks of accelerate that offload it' if hooked else ''
        raise ValueError(f'the encoder {type(encoder).__name__} is on {devices}{hooks}: '
                         "packed tokens need it on one device, without offloading, as by device_map={'': 0}")


def _sizes(encoder: nn.Module, family: Family) -> dict[str, Any]:
    """The arguments of all of the core's classes."""
    projection, layer = encoder.get_submodule(family.projection), family.layers_of(encoder)[0]
    attention = layer.get_submodule(family.attention)
    side, _ = projection.kernel_size
    if set(projection.kernel_size) | set(projection.stride) != {side} or projection.in_channels != 3:
        raise ValueError(f'{type(encoder).__name__} has patches of {projection.kernel_size} px at steps of '
                         f'{projection.stride}, of {projection.in_channels} channels: wanted squares of 3')
    dims, inner = projection.out_channels, attention.q_proj.out_features
    if inner != dims:
        raise ValueError(f'the heads of {type(encoder).__name__} have {inner} channels together, wanted its width, '
                         f'{dims}: head_dim must be hidden_size / num_attention_heads')
    hidden_dims = layer.mlp.get_submodule(next(iter(_mlp_names(layer.mlp).values()))).out_features
    heads = attention.num_heads if hasattr(attention, 'num_heads') else attention.num_attention_heads
    return dict(patch_size=side, embed_dims=dims, depth=len(family.layers_of(encoder)), num_heads=heads,
                mlp_ratio=hidden_dims / dims)


def _mlp_names(mlp: nn.Module) -> dict[str, str]:
    """The layers of the core's MLP -> those of transformers'."""
    for names in (GATED, PLAIN, PLAIN_DINOV3):
        if all(hasattr(mlp, name) for name in names.values()):
            return names
    raise AttributeError(f'{type(mlp).__name__} has none of the layers that are known')


def _mlp_kind(encoder: nn.Module, family: Family) -> str:
    mlp = family.layers_of(encoder)[0].mlp
    if _mlp_names(mlp) is not GATED:
        return 'gelu'  # its activation is replaced by the encoder's own
    if type(mlp.act_fn).__name__ not in ('SiLU', 'SiLUActivation'):
        raise ValueError(f'{type(encoder).__name__} has a gated MLP with {type(mlp.act_fn).__name__}, wanted SiLU')
    return 'swiglu'


def _root_px(sizes: Mapping[str, Any]) -> int:
    """An image size that any number of scales takes: other images are checked when they come."""
    scales = sizes['num_scales']
    return sizes['patch_size'] * (2**(scales - 1) if isinstance(scales, int) and scales > 0 else 1)


def _vit(encoder: nn.Module, family: Family, sizes: Mapping[str, Any]) -> PackedViT:
    registers = encoder.get_parameter(family.registers).shape[1] if family.registers else 0
    return APTViT(
        img_size=_root_px(sizes), mlp=_mlp_kind(encoder, family),
        pretrain_img_size=_table_cells(encoder, family) * sizes['patch_size'], num_registers=registers,
        prefix_positions=family.prefix_positions, resampling=family.resampling,
        layer_scale=1.0 if family.scales else None, pre_norm=bool(family.norm_pre), final_norm=bool(family.norm),
        patch_bias=encoder.get_submodule(family.projection).bias is not None, **sizes)


def _dinov3(encoder: nn.Module, family: Family, sizes: Mapping[str, Any]) -> PackedViT:
    return APTDINOv3(img_size=_root_px(sizes), mlp=_mlp_kind(encoder, family), rope_theta=encoder.config.rope_theta,
                     num_registers=encoder.get_parameter(family.registers).shape[1], **sizes)


def _sam3(encoder: nn.Module, family: Family, sizes: Mapping[str, Any]) -> PackedViT:
    config, patch = encoder.config, sizes['patch_size']
    size = configured_size(encoder)
    theta = config.rope_parameters['rope_theta']
    if size[0] != size[1] or size[0] % (config.window_size * patch) or theta != 10000:
        raise ValueError(f'{type(encoder).__name__} is configured with image_size={config.image_size}, window_size='
                         f'{config.window_size}, rope_theta={theta}: wanted square images of whole windows, multiples '
                         f'of {config.window_size * patch} px, and rope_theta=10000')
    return APTSAM3(img_size=size, pretrain_img_size=_table_cells(encoder, family) * patch,
                   window_size=config.window_size, rope_cells=config.window_size,
                   global_block_indexes=config.global_attn_indexes, **sizes)


_MAKERS = {'APTViT': _vit, 'APTDINOv3': _dinov3, 'APTSAM3': _sam3}


def configured_size(encoder: nn.Module) -> tuple[int, int]:
    """Height and width of the images that an encoder is configured for."""
    size = encoder.config.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _table_cells(encoder: nn.Module, family: Family) -> int:
    """The side of the table of positions, in cells."""
    entries = encoder.get_parameter(family.table).shape[-2] - family.prefix_positions
    side = round(entries**0.5)
    if side**2 != entries:
        raise ValueError(f'{family.table} of {type(encoder).__name__} has {entries} entries, wanted those of a square: '
                         f'image_size={encoder.config.image_size}')
    return side


def _tie(packed: PackedViT, encoder: nn.Module, family: Family) -> Ties:
    """Tie all parameters that the encoder has."""
    ties = Ties()
    ties.layer(packed.patch_embed.proj, encoder, family.projection)
    for own, path in (('norm_pre', family.norm_pre), ('norm', family.norm)):
        if path:
            ties.layer(packed.get_submodule(own), encoder, path)
    for own, path in (('pos_embed', family.table), ('cls_token', family.cls_token), ('reg_token', family.registers)):
        if path and getattr(packed, own) is not None:
            ties.parameter(packed, own, encoder, path)
    for index, (block, layer) in enumerate(zip(packed.blocks, family.layers_of(encoder), strict=True)):
        _tie_block(ties, block, layer, encoder, family, f'{family.layers}.{index}')
    return ties


def _tie_block(ties: Ties, block: Block, layer: nn.Module, encoder: nn.Module, family: Family, path: str) -> None:
    for own, name in zip((block.norm1, block.norm2), family.norms, strict=True):
        ties.layer(own, encoder, f'{path}.{name}')
    for own, name in (('q_proj',) * 2, ('k_proj',) * 2, ('v_proj',) * 2, ('proj', family.proj)):
        ties.layer(block.attn.get_submodule(own), encoder, f'{path}.{family.attention}.{name}')
    for own, name in _mlp_names(layer.mlp).items():
        ties.layer(block.mlp.get_submodule(own), encoder, f'{path}.mlp.{name}')
    if family.scales:
        for own, name in zip((block.ls1, block.ls2), family.scales, strict=True):
            ties.parameter(own, 'gamma', encoder, f'{path}.{name}')
    if isinstance(block.mlp, MLP):
        block.mlp.act = layer.mlp.act_fn if hasattr(layer.mlp, 'act_fn') else layer.mlp.activation_fn
    # Of one rate in all blocks, as in transformers.
    block.drop_path = DropPath(getattr(getattr(layer, 'drop_path', None), 'drop_prob', 0.0))
