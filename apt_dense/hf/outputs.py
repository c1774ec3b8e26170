"""What encoders of transformers return, made of packed rows."""
from typing import Any

import torch
from torch import Tensor, nn

from apt_dense.core.layout import TokenLayout
from apt_dense.core.vit import PackedViT
from apt_dense.extras import from_extra
from apt_dense.hf.families import Family

with from_extra('hf'):
    from transformers.modeling_outputs import BackboneOutput, BaseModelOutput, BaseModelOutputWithPooling
    from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTBackboneOutput


class Rows:
    """The packed rows of one pass, and how they become transformers' dense ones."""

    def __init__(self, packed: PackedViT, image: Tensor, layout: TokenLayout):
        self.packed, self.image, self.layout = packed, image, layout

    def of_blocks(self, wanted: frozenset[int]) -> dict[int, Tensor]:
        """Hidden states (T, C): 0 is what enters the first block, i what leaves the i-th."""
        rows = self.packed.block_rows(self.image, self.layout, frozenset(index - 1 for index in wanted))
        return dict(zip(sorted(wanted), rows, strict=True))

    def prefix(self, rows: Tensor) -> Tensor:
        """(T, C) -> the rows before each image's patches, (B, P, C)."""
        starts = self.layout.images.cu_seqlens[:-1, None].long()
        return rows[starts + torch.arange(self.layout.num_prefix, device=starts.device)]

    def cells(self, rows: Tensor) -> Tensor:
        """(T, C) -> (B, H, W, C), repeated over the cells that each row covers."""
        return self.layout.expand(rows).permute(0, 2, 3, 1)

    def dense(self, rows: Tensor) -> Tensor:
        """(T, C) -> (B, P + H * W, C), in the order of transformers: prefix, then cells row by row."""
        cells = self.cells(rows).flatten(1, 2)
        return torch.cat([self.prefix(rows), cells], 1) if self.layout.num_prefix else cells

def selected_states(asked: bool | int | list[int] | None, packed: PackedViT) -> frozenset[int] | None:
    """The hidden states that ``output_hidden_states`` asks for; None for none at all.

    Args:
        asked: a flag, or indexes of which negative ones count from the end; those out of range select nothing.
    """
    total = len(packed.blocks) + 1
    if asked is None or asked is False:
        return None
    if asked is True:
        return frozenset(range(total))
    indexes = [asked] if isinstance(asked, int) else asked
    return frozenset(index % total for index in indexes if -total <= index < total)


def model_output(encoder: nn.Module, family: Family, rows: Rows, asked: frozenset[int] | None) -> Any:
    """The output of a ...Model class."""
    depth = len(rows.packed.blocks)
    states = rows.of_blocks((asked or frozenset()) | {depth})
    last = states[depth] if rows.packed.norm is None else rows.packed.norm(states[depth])
    hidden = _hidden_states(family, rows, states, asked)
    sequence = rows.dense(last)
    if not rows.layout.num_prefix:
        return BaseModelOutput(last_hidden_state=sequence, hidden_states=hidden)
    pooled = sequence[:, 0]
    if family.pooled_norm:
        pooled = encoder.get_submodule(family.pooled_norm)(pooled)
    elif hasattr(encoder, 'pooler'):
        pooled = None if encoder.pooler is None else encoder.pooler(sequence)
    return BaseModelOutputWithPooling(last_hidden_state=sequence, pooler_output=pooled, hidden_states=hidden)


def backbone_output(encoder: nn.Module, family: Family, rows: Rows, asked: frozenset[int] | None) -> Any:
    """The output of a ...Backbone class: a map for each of its stages; 'stem' is what enters the first block."""
    stages = [index for index, name in enumerate(encoder.stage_names) if name in encoder.out_features]
    states = rows.of_blocks((asked or frozenset()) | set(stages))
    config, is_dinov3 = encoder.config, family.packed == 'APTDINOv3'
    maps, tokens = [], []
    for index in stages:
        last = is_dinov3 and index == len(encoder.stage_names) - 1  # whose last stage has its norm in any case
        state = rows.packed.norm(states[index]) if config.apply_layernorm or last else states[index]
        maps.append(_feature_map(state, rows, config.reshape_hidden_states, is_dinov3))
        tokens.append(rows.prefix(state)[:, 0])
    hidden = _hidden_states(family, rows, states, asked)
    if not is_dinov3:
        return BackboneOutput(feature_maps=tuple(maps), hidden_states=hidden)
    tokens = tuple(tokens) if getattr(config, 'return_class_token', False) else None
    return DINOv3ViTBackboneOutput(feature_maps=tuple(maps), cls_tokens=tokens, hidden_states=hidden)


def _feature_map(state: Tensor, rows: Rows, as_map: bool, without_prefix: bool) -> Tensor:
    if as_map:
        return rows.cells(state).permute(0, 3, 1, 2).contiguous()
    return rows.cells(state).flatten(1, 2) if without_prefix else rows.dense(state)


def _hidden_states(family: Family, rows: Rows, states: dict[int, Tensor],
                   asked: frozenset[int] | None) -> tuple[Tensor | None, ...] | None:
    """Those that are asked for, in a tuple of all; SAM 3's encoder has them as maps (B, H, W, C)."""
    if asked is None:
        return None
    expand = rows.cells if family.takes == 'configured' else rows.dense
    return tuple(expand(states[index]) if index in asked else None for index in range(len(rows.packed.blocks) + 1))
