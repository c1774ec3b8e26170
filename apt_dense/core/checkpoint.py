"""Official EVA-02 checkpoints: read safely, rename every key or refuse, resample, write atomically.

The names on the right-hand side are those of this project's models under mmengine: backbone, neck, rpn_head, roi_head,
decode_head, auxiliary_head.
"""
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_dense.core.eva02 import APTEVA02, PRESETS
from apt_dense.core.pyramid import SimpleFeaturePyramid

WRAPPERS = ('model', 'model_ema', 'state_dict', 'module')
PATCH_SIZE = 16

# (pattern, new name), or None for what has no counterpart here on purpose.  RoPE tables are computed, not stored.
_ROPE = (r'.*\brope\w*\.freqs_(cos|sin)', None)
_RULES = {
    # detectron2: backbone and pyramid in one module, layers counted from 1 ("{2-1}" is group 2 less 1).
    'det': (
        _ROPE,
        (r'backbone\.net\.(.+)', r'backbone.\1'),
        (r'backbone\.(simfp_\d\..+)', r'neck.\1'),
        (r'proposal_generator\.rpn_head\.conv\.conv(\d)\.(.+)', r'rpn_head.rpn_conv.\1.conv.\2'),
        (r'proposal_generator\.rpn_head\.objectness_logits\.(.+)', r'rpn_head.rpn_cls.\1'),
        (r'proposal_generator\.rpn_head\.anchor_deltas\.(.+)', r'rpn_head.rpn_reg.\1'),
        (r'proposal_generator\.anchor_generator\..+', None),
        (r'pixel_(mean|std)', None),
        (r'roi_heads\.box_head\.(\d)\.conv(\d)\.norm\.(.+)', r'roi_head.bbox_head.\1.shared_convs.{\2-1}.ln.\3'),
        (r'roi_heads\.box_head\.(\d)\.conv(\d)\.(.+)', r'roi_head.bbox_head.\1.shared_convs.{\2-1}.conv.\3'),
        (r'roi_heads\.box_head\.(\d)\.fc(\d)\.(.+)', r'roi_head.bbox_head.\1.shared_fcs.{\2-1}.\3'),
        (r'roi_heads\.box_predictor\.(\d)\.cls_score\.(.+)', r'roi_head.bbox_head.\1.fc_cls.\2'),
        (r'roi_heads\.box_predictor\.(\d)\.bbox_pred\.(.+)', r'roi_head.bbox_head.\1.fc_reg.\2'),
        (r'roi_heads\.mask_head\.mask_fcn(\d)\.norm\.(.+)', r'roi_head.mask_head.convs.{\1-1}.ln.\2'),
        (r'roi_heads\.mask_head\.mask_fcn(\d)\.(.+)', r'roi_head.mask_head.convs.{\1-1}.conv.\2'),
        (r'roi_heads\.mask_head\.deconv\.(.+)', r'roi_head.mask_head.upsample.\1'),
        (r'roi_heads\.mask_head\.predictor\.(.+)', r'roi_head.mask_head.conv_logits.\1'),
    ),
    # mmsegmentation 0.x: the neck is part of the backbone; mmseg's Feature2Pyramid has the same layers.
    'seg': (
        _ROPE,
        (r'backbone\.fpn1\.(.+)', r'neck.upsample_4x.\1'),
        (r'backbone\.fpn2\.(.+)', r'neck.upsample_2x.\1'),
        (r'(backbone\.(?:cls_token|pos_embed|patch_embed\..+|blocks\..+))', r'\1'),
        (r'((?:decode_head|auxiliary_head)\..+)', r'\1'),
    ),
    # Masked image modelling, and classifiers fine-tuned from it: the backbone alone.
    'pretrain': (
        _ROPE,
        (r'(cls_token|pos_embed|patch_embed\..+|blocks\..+)', r'backbone.\1'),
        (r'mask_token|(norm|fc_norm|lm_head|head)\..+', None),
    ),
}
TASKS = tuple(_RULES)
# Where official files have the backbone, and beginnings of names that a converted file does not have.
_PREFIXES = {'det': 'backbone.net.', 'seg': 'backbone.', 'pretrain': ''}
_TELLTALES = {
    'det': ('backbone.net.', 'backbone.simfp_'),
    'seg': ('backbone.fpn1.', 'backbone.rope.'),
    'pretrain': ('blocks.',),
}
# What no other vision transformer has together in its blocks: EVA-01, BEiT, DINO, MAE and timm's copies of EVA-02 lack
# two of them or more; official Ti and S files lack the last.
_EVA02_LAYERS = ('attn.q_proj.weight', 'attn.q_bias', 'mlp.w1.weight', 'mlp.ffn_ln.weight')


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
    state_dict = _without_ddp_prefix(state_dict)
    if task == 'auto':
        task = recognise_task(state_dict)
    elif lacking_layers(state_dict, _PREFIXES[task]):
        raise ValueError(f'these keys belong to no official EVA-02 {task} checkpoint: '
                         f'{describe_other(state_dict, _PREFIXES[task])}')
    conversion = _rename(state_dict, task)
    _check_complete(conversion)
    if target_shapes is None:
        _resample_patches_of_14(conversion)
    else:
        _fit(conversion, target_shapes)
    return conversion


def recognise_task(names: Iterable[str]) -> str:
    """Tell from the key names which official layout they are: 'det', 'seg' or 'pretrain'.

    Raises:
        ValueError: if they are none of these.
    """
    names = list(names)
    task = looks_official(names)
    if task is not None and not lacking_layers(names, _PREFIXES[task]):
        return task
    if lacking_layers(names, _PREFIXES['seg']):
        raise ValueError(f'these keys belong to no official EVA-02 checkpoint: {describe_other(names)}')
    if any(name.startswith(('neck.', 'rpn_head.', 'roi_head.')) for name in names):
        raise ValueError('these are the names of this project: the file is converted already')
    return 'seg'


def looks_official(names: Iterable[str]) -> str | None:
    """'det', 'seg' or 'pretrain' if the names are those of an official EVA-02 file of B or L, else None.

    Its blocks, if there are any, must be EVA-02's: other vision transformers use the same names around them.
    """
    names = list(_without_ddp_prefix(dict.fromkeys(names)))
    for task, beginnings in _TELLTALES.items():
        blocks = f'{_PREFIXES[task]}blocks.'
        if any(name.startswith(beginnings) for name in names) and not (
                any(name.startswith(blocks) for name in names) and lacking_layers(names, _PREFIXES[task])):
            return task
    return None


def lacking_layers(names: Iterable[str], prefix: str = '') -> list[str]:
    """Which of EVA-02's own layers no block of the backbone below ``prefix`` has; [] for one of B or L."""
    pattern = re.compile(re.escape(prefix) + r'blocks\.\d+\.(.+)')
    found = {match[1] for name in names if (match := pattern.fullmatch(name))}
    return [layer for layer in _EVA02_LAYERS if layer not in found]


def describe_other(names: Iterable[str], prefix: str = '') -> str:
    """What a file of another model holds, and what was wanted of it."""
    names = list(names)
    wanted = ', '.join(f'{prefix}blocks.N.{layer}' for layer in _EVA02_LAYERS)
    described = (f'{_listed(names)}. Wanted are {wanted} in the blocks of B and L; there is no '
                 f'{", ".join(lacking_layers(names, prefix))}')
    return described + (". These names are timm's: take the file of EVA-02's authors"
                        if any('.mlp.fc1_g.' in name for name in names) else '')


def load_official(path: str | Path, wrapper: str | None = None) -> tuple[dict[str, Tensor], str, list[str]]:
    """Read a .pth, .pt or .safetensors file without running any code in it.

    Args:
        path: the file.  Tensors of recent .pth files stay on disk until they are used.
        wrapper: the entry that holds the state dict, such as 'model_ema'; by default the first that is there of
            'model', 'model_ema', 'state_dict', 'module', or the file itself if it is a state dict.

    Returns:
        The state dict, the name of its entry ('' if there is none), and the names of the other entries.

    Raises:
        ValueError: if the file is missing, damaged, holds more than plain data, or has no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'{path} does not exist')
    content = _read_safetensors(path) if path.suffix == '.safetensors' else _read_pickle(path)
    if not isinstance(content, Mapping):
        raise ValueError(f'{path} holds a {type(content).__name__}, wanted a dict of tensors')
    if wrapper is None:
        wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), '')
    elif not isinstance(content.get(wrapper), Mapping):
        raise ValueError(f'{path} has no entry {wrapper!r} that holds a state dict: it has {_listed(content)}')
    state = content[wrapper] if wrapper else content
    others = [str(name) for name in content if name != wrapper] if wrapper else []
    bad = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if bad or not state:
        raise ValueError(f'{path}: {wrapper or "the file"} is no state dict: {_listed(bad) or "it is empty"}. Name the '
                         f'entry that is one; the file has {_listed(content)}')
    return dict(state), wrapper, others


def save_atomically(content: object, path: str | Path) -> None:
    """``torch.save`` under a temporary name in the same directory, then rename: never a half-written file.

    Raises:
        OSError: if the directory cannot be written or the disk is full; nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp')
    try:
        with os.fdopen(handle, 'wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would hide it from the others of a cluster
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _rename(state_dict: Mapping[str, Tensor], task: str) -> Conversion:
    result, unknown = Conversion(task), []
    for name, tensor in state_dict.items():
        for pattern, replacement in _RULES[task]:
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
                         f'{_listed(unknown)}')
    return result


def _without_ddp_prefix(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Strip the 'module.' that data-parallel wrappers put before every name."""
    if state_dict and all(name.startswith('module.') for name in state_dict):
        return {name.removeprefix('module.'): tensor for name, tensor in state_dict.items()}
    return state_dict


def _parts(conversion: Conversion) -> dict[str, set[str]]:
    """Part of the model -> the names that it has when it is whole."""
    names = conversion.state_dict
    depth = 1 + max((int(match[1]) for name in names if (match := re.match(r'backbone\.blocks\.(\d+)\.', name))),
                    default=0)
    with torch.device('meta'):
        backbone = APTEVA02(32, embed_dims=4, depth=depth, num_heads=1, window_size=0, global_block_indexes=(),
                            pretrain_img_size=32, with_cls_token=conversion.task != 'det')
        pyramid = SimpleFeaturePyramid(4, 4)
    parts = {'backbone': {f'backbone.{name}' for name in backbone.state_dict()}}
    both, norm = ('weight', 'bias'), ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
    if conversion.task == 'det':
        conv_ln = ('conv.weight', 'ln.weight', 'ln.bias')
        layers = [f'rpn_conv.{n}.conv' for n in range(2)] + ['rpn_cls', 'rpn_reg']
        parts['neck'] = {f'neck.{name}' for name in pyramid.state_dict()}
        parts['rpn_head'] = {f'rpn_head.{layer}.{kind}' for layer in layers for kind in both}
        parts['roi_head.bbox_head'] = {f'roi_head.bbox_head.{stage}.{name}' for stage in range(3) for name in (
            *(f'shared_convs.{n}.{kind}' for n in range(4) for kind in conv_ln),
            *(f'{layer}.{kind}' for layer in ('shared_fcs.0', 'fc_cls', 'fc_reg') for kind in both))}
        parts['roi_head.mask_head'] = {f'roi_head.mask_head.{name}' for name in (
            *(f'convs.{n}.{kind}' for n in range(4) for kind in conv_ln),
            *(f'{layer}.{kind}' for layer in ('upsample', 'conv_logits') for kind in both))}
    if conversion.task == 'seg':
        conv_bn = ('conv.weight', *(f'bn.{kind}' for kind in norm))
        upper = [*(f'psp_modules.{n}.1' for n in range(4)), 'bottleneck', 'fpn_bottleneck',
                 *(f'{kind}_convs.{n}' for kind in ('lateral', 'fpn') for n in range(3))]
        parts['neck'] = {f'neck.{name}' for name in (
            *(f'upsample_4x.{layer}.{kind}' for layer in (0, 3) for kind in both),
            *(f'upsample_4x.1.{kind}' for kind in norm), *(f'upsample_2x.0.{kind}' for kind in both))}
        for head, layers in (('decode_head', upper), ('auxiliary_head', ['convs.0'])):
            parts[head] = {f'{head}.{layer}.{kind}' for layer in layers for kind in conv_bn} | {
                f'{head}.conv_seg.{kind}' for kind in both}
    return parts


def _check_complete(conversion: Conversion) -> None:
    """Every part must be whole or absent; only a backbone is indispensable."""
    names, missing, known = conversion.state_dict.keys(), [], set()
    dims = conversion.state_dict.get('backbone.patch_embed.proj.bias')
    depth = next((preset['depth'] for preset in PRESETS.values() if dims is not None
                  and preset['embed_dims'] == len(dims)), 0)
    if depth and f'backbone.blocks.{depth - 1}.norm1.weight' not in names:
        raise ValueError(f'the last block, backbone.blocks.{depth - 1}, is missing: EVA-02 of {len(dims)} channels has '
                         f'{depth} blocks')
    for part, wanted in _parts(conversion).items():
        known |= wanted
        if part != 'backbone' and not names & wanted:
            conversion.absent.append(part)
        else:
            missing += sorted(wanted - names)
    if missing:
        raise ValueError(f'{len(missing)} keys are missing: {_listed(missing)} (names as they are here)')
    unexpected = sorted(names - known)
    if unexpected:
        raise ValueError(f'{len(unexpected)} keys are left over: {_listed(unexpected)} (names as they are here)')


def _resample_patches_of_14(conversion: Conversion) -> None:
    state = conversion.state_dict
    old = state['backbone.patch_embed.proj.weight'].shape[-1]
    if old == PATCH_SIZE:
        return
    side = _side(state['backbone.pos_embed'])
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
    may_lack = re.compile('|'.join([r'backbone\.patch_embed\.(conv_down|zero_mlp)\.',
                                    *(rf'{re.escape(part)}\.' for part in conversion.absent)]))
    lacking = sorted(name for name in target if name not in state and not may_lack.match(name))
    problems = [f'{len(names)} {what}: {_listed(names)}' for names, what in (
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
    old = _side(table)
    conversion.state_dict[name] = resample_positions(table, side)
    conversion.resampled.append(f'{name}: {old}x{old} -> {side}x{side} positions')


def resample_positions(table: Tensor, side: int) -> Tensor:
    """Position table (1, 1 + n * n, C) -> (1, 1 + side * side, C); the class token's entry, the first, stays.

    Bicubic without antialias, as EVA's own script.

    Raises:
        ValueError: if the table is not of a square grid and a class token.
    """
    old = _side(table)
    grid = table[:, 1:].float().unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode='bicubic', align_corners=False)
    grid = grid.flatten(2).transpose(1, 2).to(table.dtype)
    return torch.cat([table[:, :1], grid], 1)


def positions_fit(stored: torch.Size, own: torch.Size) -> bool:
    """True if a stored position table is the model's once it is resampled: (1, 1 + n * n, C) with the same C."""
    return len(stored) == 3 and stored[::2] == own[::2] and stored[1] == 1 + round((stored[1] - 1)**0.5)**2


def _side(table: Tensor) -> int:
    """Side of a square position table (1, 1 + side**2, C)."""
    side = round((table.shape[1] - 1)**0.5)
    if side**2 + 1 != table.shape[1]:
        raise ValueError(f'pos_embed has {table.shape[1]} entries, wanted a square number and one for the class token')
    return side


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f'{path.name} needs the package safetensors: pip install safetensors, or pip '
                          "install -e '.[tools]' in the project's folder") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f'{path} cannot be read as safetensors: {error}') from error


def _read_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        names = _unsafe_names(path)
        if names:
            raise ValueError(f'{path} holds more than plain data and is not loaded, because that could run code: '
                             f'{_listed(names)}. Ask its author for a file with tensors only') from error
        raise ValueError(f'{path} is damaged, or holds more than plain data, and is not loaded: '
                         f'{str(error).splitlines()[0]}') from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f'{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}') from error


def _unsafe_names(path: Path) -> list[str]:
    """The classes and functions that a file of torch's zip format would call."""
    if not zipfile.is_zipfile(path) or not hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint'):
        return []
    return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))


def _listed(names: Iterable[object], most: int = 10) -> str:
    names = [str(name) for name in names]
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '')
