"""Official EVA-02 checkpoints as this project's: rename every key or refuse, resample."""
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from apt_dense.core.checkpoint_files import listed
from apt_dense.core.eva02 import PRESETS
from apt_dense.core.eva02_keys import (
    PREFIXES,
    RULES,
    TASKS,
    describe_other,
    lacking_layers,
    names_of_parts,
    recognise_task,
)
from apt_dense.core.position import table_side
from apt_dense.core.renaming import (
    PROJECTION,
    TABLE,
    Conversion,
    fit,
    rename,
    resample_projection,
    resample_table_of,
    without_ddp_prefix,
)

PATCH_SIZE = 16


@dataclass
class EVA02Conversion(Conversion):
    """See ``Conversion``; ``task`` is 'det', 'seg' or 'pretrain'."""
    task: str = ''


def convert(state_dict: Mapping[str, Tensor], task: str = 'auto',
            target_shapes: Mapping[str, torch.Size] | None = None) -> EVA02Conversion:
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
    conversion = EVA02Conversion(task=task)
    rename(conversion, state_dict, RULES[task], f'an official EVA-02 {task} checkpoint')
    _check_complete(conversion)
    if target_shapes is None:
        _resample_patches_of_14(conversion)
    else:
        fit(conversion, target_shapes, ['backbone.cls_token'])  # a detector has no class token
    return conversion


def _check_complete(conversion: EVA02Conversion) -> None:
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
    old = state[PROJECTION].shape[-1]
    if old == PATCH_SIZE:
        return
    side = table_side(state[TABLE])
    if side * old % PATCH_SIZE:
        raise ValueError(f'a position table of {side}x{side} patches of {old} px is for images of {side * old} px, '
                         f'which is no multiple of {PATCH_SIZE}')
    resample_projection(conversion, PATCH_SIZE)
    resample_table_of(conversion, side * old // PATCH_SIZE)
