"""What the tensors of a vision transformer tell about its sizes."""
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from apt_dense.core import dinov3, plain_vit, sam3
from apt_dense.core.dinov3 import APTDINOv3
from apt_dense.core.plain_vit import APTViT
from apt_dense.core.sam3 import APTSAM3
from apt_dense.core.vit import PackedViT

FAMILY_CLASSES: dict[str, type[PackedViT]] = {'vit': APTViT, 'dinov2': APTViT, 'clip': APTViT, 'dinov3': APTDINOv3,
                                              'sam3': APTSAM3}
HEAD_DIM = 64  # channels of a head, in most published models
# Published models whose heads have another width, besides the presets: channels -> heads.  SoViT-400m, ViT-g, ViT-G.
OTHER_HEADS = {1152: 16, 1408: 16, 1664: 16}


def sizes_of(state: Mapping[str, Tensor], family: str, pooled_norm: bool = False) -> dict:
    """The arguments of a family's class that follow from its tensors, but for the number of heads.

    Args:
        state: names of ``PackedViT`` -> tensors.
        family: of ``FAMILY_CLASSES``.
        pooled_norm: the file's last norm is of pooled tokens, so that the encoder has none.

    Raises:
        ValueError: if a tensor that tells a size is missing, or the position table fits no grid.
    """
    names = state.keys()
    projection = _needed(state, 'patch_embed.proj.weight')
    embed_dims, patch_size = projection.shape[0], projection.shape[-1]
    swiglu = 'blocks.0.mlp.w1.weight' in names
    hidden_dims = len(_needed(state, 'blocks.0.mlp.w1.weight' if swiglu else 'blocks.0.mlp.fc1.weight'))
    depth = 1 + max(int(match[1]) for name in names if (match := re.match(r'blocks\.(\d+)\.', name)))
    sizes = dict(patch_size=patch_size, embed_dims=embed_dims, depth=depth, mlp_ratio=hidden_dims / embed_dims)
    if family == 'sam3':
        return sizes | dict(pretrain_img_size=_table_side(state, (0,)) * patch_size)
    registers = state['reg_token'].shape[1] if 'reg_token' in names else 0
    class_token = 'cls_token' in names or family == 'dinov3'
    sizes |= dict(with_cls_token=class_token, num_registers=registers, final_norm=not pooled_norm,
                  layer_scale=1e-5 if _any(names, r'ls[12]\.gamma') or family == 'dinov3' else None,
                  qkv_bias=_any(names, r'attn\.[qv]_proj\.bias'), **(dict(mlp='swiglu') if swiglu else {}))
    if family == 'dinov3':
        return sizes
    prefixes = (0, *([1] if class_token else []), class_token + registers)
    side = _table_side(state, prefixes)
    return sizes | dict(pretrain_img_size=side * patch_size, prefix_positions=state['pos_embed'].shape[1] - side**2,
                        pre_norm=any(name.startswith('norm_pre.') for name in names) or family == 'clip',
                        patch_bias=family != 'clip' or 'patch_embed.proj.bias' in names)


def heads_of(embed_dims: int, family: str) -> int:
    """How many heads a published model of so many channels has.

    Raises:
        ValueError: for a width of which that is not known.
    """
    module = {APTViT: plain_vit, APTDINOv3: dinov3, APTSAM3: sam3}[FAMILY_CLASSES[family]]
    published = {preset['embed_dims']: preset['num_heads'] for preset in module.PRESETS.values() if preset}
    if FAMILY_CLASSES[family] is APTViT:
        published = OTHER_HEADS | published
    if embed_dims in published:
        return published[embed_dims]
    if embed_dims % HEAD_DIM:
        raise ValueError(f'no tensor tells the number of heads, and {embed_dims} channels are no multiple of '
                         f'{HEAD_DIM}: give num_heads')
    return embed_dims // HEAD_DIM


def names_and_shapes(family: str, sizes: Mapping, num_scales: int = 1) -> dict[str, torch.Size]:
    """The parameters of a model of these sizes; of two scales, with what APT adds."""
    windows = dict(window_size=0, global_block_indexes=()) if family == 'sam3' else {}
    scales = dict(num_scales=num_scales, thresholds=(0,) * (num_scales - 1))
    with torch.device('meta'):
        model = FAMILY_CLASSES[family](**{**sizes, **windows, **scales, 'img_size': 4 * sizes['patch_size'],
                                          'num_heads': 1})
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _needed(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f'1 keys are missing: {name} (names as they are here)')
    return state[name]


def _any(names, pattern: str) -> bool:
    return any(re.fullmatch(rf'blocks\.\d+\.{pattern}', name) for name in names)


def _table_side(state: Mapping[str, Tensor], prefixes: tuple[int, ...]) -> int:
    """Cells a side of the position table, which has one of so many entries for the prefix."""
    entries = _needed(state, 'pos_embed').shape[1]
    sides = {round((entries - prefix)**0.5) for prefix in prefixes
             if entries > prefix and round((entries - prefix)**0.5)**2 == entries - prefix}
    if len(sides) != 1:
        raise ValueError(f'pos_embed has {entries} entries, which {"fit several grids" if sides else "fit no grid"}: '
                         f'wanted a square number and {" or ".join(map(str, sorted(set(prefixes))))} for the prefix')
    return sides.pop()
