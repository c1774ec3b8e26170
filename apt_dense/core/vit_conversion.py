"""Other libraries' plain vision transformers as this project's: rename every key or refuse, resample."""
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from apt_dense.core.checkpoint_files import listed
from apt_dense.core.embed import ADDED_PARAMETERS
from apt_dense.core.renaming import Conversion, fit, rename, without_ddp_prefix
from apt_dense.core.vit_keys import FAMILIES, find_layout
from apt_dense.core.vit_sizes import FAMILY_CLASSES, names_and_shapes, sizes_of

# What a model may do without: rows before the patches, the last norm, and what APT adds.
OPTIONAL = tuple(f'backbone.{name}' for name in ('cls_token', 'reg_token', 'norm.weight', 'norm.bias',
                                                 *ADDED_PARAMETERS))
HEAD = re.compile(r'(?:head|classifier)\.(weight|bias)|(fc_norm\.(?:weight|bias))')  # of timm, MAE and transformers


@dataclass
class ViTConversion(Conversion):
    """See ``Conversion``; what is fused in the file has one name in ``mapped``.

    Attributes:
        family: 'vit', 'dinov2', 'dinov3', 'clip' or 'sam3'.
        source: whose names the file has.
        sizes: arguments of the family's class, as the tensors tell them.
    """
    family: str = ''
    source: str = ''
    sizes: dict = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        """The class that has the family's blocks."""
        return FAMILY_CLASSES[self.family].__name__


def convert_vit(state_dict: Mapping[str, Tensor], family: str = 'auto',
                target_shapes: Mapping[str, torch.Size] | None = None, head: bool | None = None) -> ViTConversion:
    """Convert the image encoder of a file of timm, transformers, open_clip or its authors.

    Args:
        state_dict: names there -> tensors; not changed.
        family: 'vit', 'dinov2', 'dinov3', 'clip', 'sam3', or 'auto' to recognise it from the keys.
        target_shapes: names and shapes of the model that will load the result, the encoder's below 'backbone.'.  The
            position table and the patch embedding are resampled to them; the class token, registers, the last norm and
            what APT adds are dropped where the model has none; any other difference is an error.
        head: keep the classifier's last layer, and the norm before it; None: where the target has one.

    Returns:
        Its names begin with 'backbone.', those of the classifier are 'head.*' and 'fc_norm.*'.

    Raises:
        ValueError: for an encoder that is not known or cannot work, keys that no rule knows, that are missing or do not
            fit.
    """
    if family not in ('auto', *FAMILIES):
        raise ValueError(f"unknown family {family!r}: choose one of {('auto', *FAMILIES)}")
    state_dict = without_ddp_prefix(state_dict)
    layout, prefix, family = find_layout(state_dict, family)
    conversion = ViTConversion(family=family, source=layout.source)
    rename(conversion, state_dict, layout.rules_below(prefix), f'a {family} file of {layout.source}')
    state = _take_apart(conversion.state_dict, family)
    conversion.sizes = sizes_of(state, family, any('fc_norm.' in name for name in conversion.dropped))
    adapted = 'patch_embed.conv_down.weight' in state
    _check_complete(state, names_and_shapes(family, conversion.sizes, 2 if adapted else 1))
    conversion.state_dict = {f'backbone.{name}': tensor for name, tensor in state.items()}
    conversion.mapped = {old: f'backbone.{new}' for old, new in conversion.mapped.items()}
    if head or head is None and 'head.weight' in (target_shapes or ()):
        _keep_head(conversion, state_dict)
    found = {name.partition('.')[0] for name in conversion.state_dict}
    conversion.absent = sorted({name.partition('.')[0] for name in target_shapes or ()} - found)
    if target_shapes is not None:
        _check_head(conversion.state_dict, target_shapes)
        fit(conversion, target_shapes, OPTIONAL, conversion.sizes.get('prefix_positions', 0))
    return conversion


def _keep_head(conversion: ViTConversion, state_dict: Mapping[str, Tensor]) -> None:
    for name in [name for name in conversion.dropped if HEAD.fullmatch(name)]:
        match = HEAD.fullmatch(name)
        conversion.dropped.remove(name)
        conversion.mapped[name] = match[2] or f'head.{match[1]}'
        conversion.state_dict[conversion.mapped[name]] = state_dict[name]


def _check_head(state: Mapping[str, Tensor], wanted: Mapping[str, torch.Size]) -> None:
    own, other = state.get('head.weight'), wanted.get('head.weight')
    if own is not None and other is not None and own.shape != other:
        raise ValueError(f'the head is of {own.shape[0]} classes and {own.shape[1]} channels, that of the config of '
                         f'{other[0]} and {other[1]}: --head drop leaves it out, and training begins with a new one')


def _take_apart(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """Rows before the patches and positions as (1, N, C); the blocks' fused layers in their parts."""
    blocks, result = {}, {}
    for name, tensor in state.items():
        match = re.fullmatch(r'(blocks\.\d+\.)(.+)', name)
        if match:
            blocks.setdefault(match[1], {})[match[2]] = tensor
        elif name not in ('cls_token', 'reg_token', 'pos_embed'):
            result[name] = tensor
        elif tensor.numel():  # zero registers are none
            result[name] = tensor.reshape(1, -1, tensor.shape[-1])
    for prefix, block in blocks.items():
        _split_mlp(block, prefix)
        _split_qkv(block, prefix)
        if family == 'dinov3':
            _drop_key_bias(block, prefix)
        result |= {f'{prefix}{name}': tensor for name, tensor in block.items()}
    if family == 'sam3' and 'pos_embed' in result and _is_square(result['pos_embed'].shape[1] - 1):
        result['pos_embed'] = result['pos_embed'][:, 1:]  # of the class token of its pre-training
    return result


def _split_mlp(block: dict[str, Tensor], prefix: str) -> None:
    """An MLP as fc1 and fc2, or with a gate as w1, w2 and w3; fused, the gate comes first."""
    up, down = block.get('mlp.fc1.weight'), block.get('mlp.fc2.weight')
    if up is not None and down is not None and len(up) == 2 * down.shape[1]:
        _move(block, {'mlp.fc1': 'mlp.w12'})
    for kind in ('weight', 'bias'):
        _split(block, f'mlp.w12.{kind}', [f'mlp.w1.{kind}', f'mlp.w2.{kind}'], prefix)
    gated = 'mlp.w1.weight' in block
    _move(block, {'mlp.up': 'mlp.w2', 'mlp.down': 'mlp.w3', 'mlp.fc2': 'mlp.w3'} if gated else
          {'mlp.up': 'mlp.fc1', 'mlp.down': 'mlp.fc2'})


def _split_qkv(block: dict[str, Tensor], prefix: str) -> None:
    """One layer for queries, keys and values as three; a bias that is masked, by its mask."""
    mask = block.pop('attn.bias_mask', None)
    if mask is not None:
        expected = torch.ones(3, len(mask) // 3)
        expected[1] = 0
        if not torch.equal(mask.float(), expected.flatten()):
            raise ValueError(f'{prefix}attn.qkv.bias_mask masks other biases than those of the keys')
        if 'attn.qkv.bias' in block:
            block['attn.qkv.bias'] = block['attn.qkv.bias'] * mask.to(block['attn.qkv.bias'].dtype)
    for kind in ('weight', 'bias'):
        _split(block, f'attn.qkv.{kind}', [f'attn.{part}_proj.{kind}' for part in 'qkv'], prefix)


def _drop_key_bias(block: dict[str, Tensor], prefix: str) -> None:
    bias = block.pop('attn.k_proj.bias', None)
    if bias is not None and bias.any():
        raise ValueError(f'{prefix}attn: keys have a bias that is not 0, and those of DINOv3 have none')


def _split(block: dict[str, Tensor], name: str, parts: list[str], prefix: str) -> None:
    """Rows of one tensor as several tensors of the same height."""
    if name not in block:
        return
    tensor = block.pop(name)
    if len(tensor) % len(parts):
        raise ValueError(f'{prefix}{name} has {len(tensor)} rows, wanted a multiple of {len(parts)}')
    block |= zip(parts, tensor.chunk(len(parts)), strict=True)


def _move(block: dict[str, Tensor], layers: Mapping[str, str]) -> None:
    for old, new in layers.items():
        for kind in ('weight', 'bias'):
            if f'{old}.{kind}' in block:
                block[f'{new}.{kind}'] = block.pop(f'{old}.{kind}')


def _is_square(number: int) -> bool:
    return round(number**0.5)**2 == number


def _check_complete(state: Mapping[str, Tensor], wanted: Mapping[str, torch.Size]) -> None:
    """Raise unless the names and shapes are those of a model of these sizes."""
    missing, left = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    wrong = [f'{name}: {tuple(tensor.shape)}, wanted {tuple(wanted[name])}' for name, tensor in state.items()
             if name in wanted and tensor.shape != wanted[name]]
    problems = [f'{len(names)} {what}: {listed(names)}' for names, what in (
        (missing, 'keys are missing'), (left, 'keys are left over'), (wrong, 'shapes do not fit the others'))
        if names]
    if problems:
        raise ValueError(f'{"; ".join(problems)} (names as they are here)')
