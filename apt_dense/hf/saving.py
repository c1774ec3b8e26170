"""Loading what ``adapt`` added to a model."""
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from apt_dense.core.checkpoint_files import listed, load_official
from apt_dense.hf.adapting import SETTINGS, AddedParts


def load_added(model: nn.Module, source: str | Path | Mapping[str, Tensor]) -> None:
    """Load the parameters that APT added, of a model that ``save_pretrained`` wrote.

    ``from_pretrained`` opens such a folder as the model before ``adapt``, and reports these as unexpected.  A warning
    names the settings of ``adapt`` that differ from those of the saved model, if the folder has its config.

    Args:
        model: adapted, as the saved one was.
        source: the folder, one of its files, or a state dict.

    Raises:
        ValueError: if the model is not adapted; or if one of its added parameters is missing, or has another shape.
    """
    added = {f'{name}.{part}'.lstrip('.'): parameter for name, module in model.named_modules()
             if isinstance(module, AddedParts) for part, parameter in module.named_parameters()}
    if not added:
        raise ValueError(f'{type(model).__name__} has no added parameters: call apt_dense.hf.adapt first, with more '
                         "than one scale and another detail_branch than 'none'")
    stored = source if isinstance(source, Mapping) else _read(Path(source))
    found = {name: _named(name, stored) for name in added}
    wrong = [f'{name} is missing' if found[name] is None else f'{name} is {tuple(found[name].shape)} there and '
             f'{tuple(parameter.shape)} here' for name, parameter in added.items()
             if found[name] is None or found[name].shape != parameter.shape]
    if wrong:
        there = [name for name in stored if '.apt.' in f'.{name}']
        raise ValueError(f'the added parameters do not fit: {listed(wrong)}. The source has {listed(there) or "none"}: '
                         'adapt the model as the saved one was')
    if not isinstance(source, Mapping):
        _compare_settings(model, Path(source))
    with torch.no_grad():
        for name, parameter in added.items():
            parameter.copy_(found[name])


def _compare_settings(model: nn.Module, source: Path) -> None:
    """Warn of settings that the saved model had and this one has not."""
    path = (source if source.is_dir() else source.parent) / 'config.json'
    own = getattr(getattr(model, 'config', None), SETTINGS, None) or {}
    try:
        stored = json.loads(path.read_text(encoding='utf-8')).get(SETTINGS) or {}
    except (OSError, ValueError, AttributeError):
        return  # of weights alone, or not of save_pretrained
    differing = {f'{key}={own[name].get(key)!r}, the saved one {value!r}' for name in own.keys() & stored.keys()
                 for key, value in stored[name].items() if own[name].get(key) != value}
    if differing:
        warnings.warn(f'this model was adapted with {"; ".join(sorted(differing))}: its outputs are others than those '
                      'of the saved model', stacklevel=3)


def _named(name: str, stored: Mapping[str, Tensor]) -> Tensor | None:
    """The tensor of a name, or of its end: transformers writes some models, LLaVA for one, by their older names."""
    if name in stored:
        return stored[name]
    close = [tensor for other, tensor in stored.items() if name.endswith(f'.{other}') or other.endswith(f'.{name}')]
    return close[0] if len(close) == 1 else None


def _read(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of the weights in a folder."""
    files = [path] if path.is_file() else sorted([*path.glob('*.safetensors'), *path.glob('pytorch_model*.bin')])
    if not files:
        raise ValueError(f'{path} holds no .safetensors file: give the folder that save_pretrained wrote')
    return {name: tensor for file in files for name, tensor in load_official(file)[0].items()}
