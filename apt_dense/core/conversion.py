"""Official EVA-02 checkpoints as this project's: rename every key or refuse, resample."""
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_dense.core.checkpoint_files import listed
from apt_dense.core.embed import ADDED_PARAMETERS
from apt_dense.core.eva02 import PRESETS
from apt_dense.core.eva02_keys import (
    PREFIXES,
    RULES,
    TASKS,
    describe_other,
    lacking_layers,
    names_of_parts,
    recognise_task,
    without_ddp_prefix,
)
from apt_dense.core.position import resample_positions, table_side

PATCH_SIZE = 16


@dataclass
class Conversion:
    """A converted state dict and what became of each key.

    Attributes:
        task: 'det', 'seg' or 'pretrain'.
        state_dict: new name -> tensor.
        mapped: old name -> new name.
        dropped: old names that have no counterpart, on purpose.
        resampled: one line for each tensor whose size was changed.
        absent: parts of the model that the file does not hold.
    """
    task: str
    state_dict: dict[str, Tensor] = field(default_factory=dict)
    mapped: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    resampled: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def convert(state_dict: Mapping[str, Tensor], task: str = 'auto',
            target_shapes: Mapping[str, torch.Size] | None = None) -> Conversion:
    """Convert an official EVA-02 state dict, whole or in whole parts.

    Args:
        state_dict: official names -> tensors; not changed.
        task: 'det' (detectron2), 'seg' (mmsegmentation), 'pretrain', or 'auto' to recognise it from the keys.
        target_shapes: names and shapes of the model that will load the result.  The position table and the patch
            embedding are resampled to them; any other difference is an error.  Without them a patch embedding of 14 px
            is resampled to 16, and its position table to the grid of the same image.

    Raises:
        ValueError: naming the keys that no rule knows, that are missing from a part of the model, or that do not fit
            the target.
    """
    if task not in ('auto', *TASKS):
        raise ValueError(f"unknown task {task!r}: choose one of {('auto', *TASKS)}")
    state_dict = without_ddp_prefix(state_dict)
    if task == 'auto':
        task = recognise_task(state_dict)
    elif lacking_layers(state_dict, PREFIXES[task]):
        raise ValueError(f'these keys belong to no official EVA-02 {task} checkpoint: '
                         f'{describe_other(state_dict, PREFIXES[task])}')
    conversion = _rename(state_dict, task)
    _check_complete(conversion)
    if target_shapes is None:
        _resample_patches_of_14(conversion)
    else:
        _fit(conversion, target_shapes)
    return conversion


def _rename(state_dict: Mapping[str, Tensor], task: str) -> Conversion:
    result, unknown = Conversion(task), []
    for name, tensor in state_dict.items():
        for pattern, replacement in RULES[task]:
            match = re.fullmatch(pattern, name)
            if match is None:
                continue
            if replacement is None:
                result.dropped.append(name)
            else:
                new_name = re.sub(r'\{(\d)-1\}', lambda number: str(int(number[1]) - 1), match.expand(replacement))
                result.state_dict[new_name] = tensor
                result.mapped[name] = new_name
            break
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f'{len(unknown)} keys do not belong to an official EVA-02 {task} checkpoint: '
                         f'{listed(unknown)}')
    return result


def _check_complete(conversion: Conversion) -> None:
    """Every part must be whole or absent; only a backbone is indispensable."""
    names, missing, known = conversion.state_dict.keys(), [], set()
    dims = conversion.state_dict.get('backbone.patch_embed.proj.bias')
    depth = next((preset['depth'] for preset in PRESETS.values() if dims is not None
                  and preset['embed_dims'] == len(dims)), 0)
    if depth and f'backbone.blocks.{depth - 1}.norm1.weight' not in names:
        raise ValueError(f'the last block, backbone.blocks.{depth - 1}, is missing: EVA-02 of {len(dims)} channels has '
                         f'{depth} blocks')
    for part, wanted in names_of_parts(names, conversion.task).items():
        known |= wanted
        if part != 'backbone' and not names & wanted:
            conversion.absent.append(part)
        else:
            missing += sorted(wanted - names)
    if missing:
        raise ValueError(f'{len(missing)} keys are missing: {listed(missing)} (names as they are here)')
    unexpected = sorted(names - known)
    if unexpected:
        raise ValueError(f'{len(unexpected)} keys are left over: {listed(unexpected)} (names as they are here)')


def _resample_patches_of_14(conversion: Conversion) -> None:
    state = conversion.state_dict
    old = state['backbone.patch_embed.proj.weight'].shape[-1]
    if old == PATCH_SIZE:
        return
    side = table_side(state['backbone.pos_embed'])
    if side * old % PATCH_SIZE:
        raise ValueError(f'a position table of {side}x{side} patches of {old} px is for images of {side * old} px, '
                         f'which is no multiple of {PATCH_SIZE}')
    _resample_projection(conversion, PATCH_SIZE)
    _resample_positions(conversion, side * old // PATCH_SIZE)


def _fit(conversion: Conversion, target: Mapping[str, torch.Size]) -> None:
    """Resample to the target's shapes; raise for everything else that does not fit."""
    state = conversion.state_dict
    table, projection = 'backbone.pos_embed', 'backbone.patch_embed.proj.weight'
    if 'backbone.cls_token' in state and 'backbone.cls_token' not in target:
        del state['backbone.cls_token']  # a detector has no class token
        old = next(old for old, new in conversion.mapped.items() if new == 'backbone.cls_token')
        del conversion.mapped[old]
        conversion.dropped.append(old)
    if projection in target and target[projection][-1] != state[projection].shape[-1]:
        _resample_projection(conversion, target[projection][-1])
    if table in target and target[table] != state[table].shape and target[table][-1] == state[table].shape[-1]:
        _resample_positions(conversion, round((target[table][1] - 1)**0.5))
    left = sorted(name for name in state if name not in target)
    wrong = [f'{name}: {tuple(tensor.shape)} in the file, {tuple(target[name])} in the model'
             for name, tensor in state.items() if name in target and tensor.shape != target[name]]
    # Absent parts, and what APT adds to the dense model, start from their own values.
    may_lack = (*(f'backbone.{name}' for name in ADDED_PARAMETERS), *(f'{part}.' for part in conversion.absent))
    lacking = sorted(name for name in target if name not in state and not name.startswith(may_lack))
    problems = [f'{len(names)} {what}: {listed(names)}' for names, what in (
        (left, 'keys have no place in the model'), (lacking, 'parameters of the model are not in the file'),
        (wrong, 'shapes differ')) if names]
    if problems:
        raise ValueError(f'the file does not fit the config. {"; ".join(problems)}')


def _resample_projection(conversion: Conversion, patch_size: int) -> None:
    """Bicubic, as EVA's own script from 14 to 16 pixels."""
    name = 'backbone.patch_embed.proj.weight'
    weight = conversion.state_dict[name]
    resized = F.interpolate(weight.float(), size=(patch_size, patch_size), mode='bicubic', align_corners=False)
    conversion.state_dict[name] = resized.to(weight.dtype)
    conversion.resampled.append(f'{name}: patches of {weight.shape[-1]} -> {patch_size} px')


def _resample_positions(conversion: Conversion, side: int) -> None:
    name = 'backbone.pos_embed'
    table = conversion.state_dict[name]
    old = table_side(table)
    conversion.state_dict[name] = resample_positions(table, side)
    conversion.resampled.append(f'{name}: {old}x{old} -> {side}x{side} positions')
