"""State dicts of other code as this project's: every key renamed or dropped by rule, or an error; sizes resampled."""
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_dense.core.checkpoint_files import listed
from apt_dense.core.embed import ADDED_PARAMETERS
from apt_dense.core.position import resample_positions, table_side

Rules = Sequence[tuple[str, str | None]]  # (pattern of the whole name, new name or None for what is dropped on purpose)
TABLE, PROJECTION = 'backbone.pos_embed', 'backbone.patch_embed.proj.weight'


@dataclass
class Conversion:
    """A converted state dict and what became of each key.

    Attributes:
        state_dict: new name -> tensor.
        mapped: old name -> new name.
        dropped: old names that have no counterpart, on purpose.
        resampled: one line for each tensor whose size was changed.
        absent: parts of the model that the file does not hold.
    """
    state_dict: dict[str, Tensor] = field(default_factory=dict)
    mapped: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    resampled: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def rename(conversion: Conversion, state_dict: Mapping[str, Tensor], rules: Rules, what: str) -> None:
    """Give every tensor its new name, by the first rule whose pattern is the whole old name.

    Args:
        conversion: takes the result.
        state_dict: old names -> tensors.
        rules: in a new name ``\\1`` is the pattern's group 1, and ``{\\1-1}`` the number in it, less 1.
        what: the files that have these names, for the error.

    Raises:
        ValueError: naming the keys that no rule knows, or two of one new name that differ.
    """
    unknown = []
    for name, tensor in state_dict.items():
        for pattern, replacement in rules:
            match = re.fullmatch(pattern, name)
            if match is None:
                continue
            if replacement is None:
                conversion.dropped.append(name)
            else:
                new_name = re.sub(r'\{(\d+)-1\}', lambda number: str(int(number[1]) - 1), match.expand(replacement))
                _place(conversion, name, new_name, tensor)
            break
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f'{len(unknown)} keys do not belong to {what}: {listed(unknown)}')


def _place(conversion: Conversion, name: str, new_name: str, tensor: Tensor) -> None:
    """Put a tensor under its new name; a second one must be the same: some files have a shared tensor twice."""
    first = conversion.state_dict.setdefault(new_name, tensor)
    if first is not tensor and not torch.equal(first, tensor):
        other = next(old for old, new in conversion.mapped.items() if new == new_name)
        raise ValueError(f'{other} and {name} are one parameter here, {new_name}, and differ in the file')
    conversion.mapped[name] = new_name


def fit(conversion: Conversion, target: Mapping[str, torch.Size], optional: Iterable[str] = (), prefix: int = 1,
        what: str = 'the config') -> None:
    """Resample to the target's shapes; raise for everything else that does not fit.

    Args:
        conversion: of a backbone and maybe more, changed in place.
        target: names -> shapes of the model that will load it.
        optional: names that are dropped where the target lacks them.
        prefix: entries of the position table before those of the cells.
        what: the target, for the error.

    Raises:
        ValueError: naming what has no place, what is lacking, and shapes that differ.
    """
    state = conversion.state_dict
    for name in [name for name in optional if name in state and name not in target]:
        del state[name]
        for old in [old for old, new in conversion.mapped.items() if new == name]:
            del conversion.mapped[old]
            conversion.dropped.append(old)
    if PROJECTION in target and PROJECTION in state and target[PROJECTION][-1] != state[PROJECTION].shape[-1]:
        resample_projection(conversion, target[PROJECTION][-1])
    if TABLE in target and TABLE in state and target[TABLE] != state[TABLE].shape and (
            target[TABLE][-1] == state[TABLE].shape[-1]):
        resample_table_of(conversion, round((target[TABLE][1] - prefix)**0.5), prefix)
    left = sorted(name for name in state if name not in target)
    wrong = [f'{name}: {tuple(tensor.shape)} in the file, {tuple(target[name])} in the model'
             for name, tensor in state.items() if name in target and tensor.shape != target[name]]
    # Absent parts, and what APT adds to the dense model, start from their own values.
    may_lack = (*(f'backbone.{name}' for name in ADDED_PARAMETERS), *(f'{part}.' for part in conversion.absent))
    lacking = sorted(name for name in target if name not in state and not name.startswith(may_lack))
    problems = [f'{len(names)} {problem}: {listed(names)}' for names, problem in (
        (left, 'keys have no place in the model'), (lacking, 'parameters of the model are not in the file'),
        (wrong, 'shapes differ')) if names]
    if problems:
        raise ValueError(f'the file does not fit {what}. {"; ".join(problems)}')


def resample_projection(conversion: Conversion, patch_size: int) -> None:
    """The patch embedding at another side of a patch: bicubic, as EVA's own script from 14 to 16 pixels."""
    weight = conversion.state_dict[PROJECTION]
    resized = F.interpolate(weight.float(), size=(patch_size, patch_size), mode='bicubic', align_corners=False)
    conversion.state_dict[PROJECTION] = resized.to(weight.dtype)
    conversion.resampled.append(f'{PROJECTION}: patches of {weight.shape[-1]} -> {patch_size} px')


def resample_table_of(conversion: Conversion, side: int, prefix: int = 1) -> None:
    """The position table at another side in cells."""
    table = conversion.state_dict[TABLE]
    old = table_side(table, prefix)
    conversion.state_dict[TABLE] = resample_positions(table, side, prefix)
    conversion.resampled.append(f'{TABLE}: {old}x{old} -> {side}x{side} positions')


def without_ddp_prefix(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Strip the 'module.' that data-parallel wrappers put before every name."""
    if state_dict and all(name.startswith('module.') for name in state_dict):
        return {name.removeprefix('module.'): tensor for name, tensor in state_dict.items()}
    return state_dict
