"""Checkpoints of several files: folders as transformers and timm write them, and shards with an index."""
import json
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from apt_dense.core.checkpoint_files import listed, load_official

# Of a folder the first that is there.
WEIGHT_FILES = ('model.safetensors.index.json', 'model.safetensors', 'pytorch_model.bin.index.json',
                'pytorch_model.bin', 'open_clip_model.safetensors', 'open_clip_pytorch_model.bin')
INDEX = '.index.json'
CONFIG, PREPROCESSING, PROCESSOR = 'config.json', 'preprocessor_config.json', 'processor_config.json'


@dataclass
class Checkpoint:
    """What was read.

    Attributes:
        state_dict: names -> tensors.
        entry, others: see ``load_official``.
        config: of the model, as config.json has it; empty if there is none.
        preprocessing: of images, as preprocessor_config.json has it, or processor_config.json in its image_processor.
    """
    state_dict: dict[str, Tensor]
    entry: str = ''
    others: list[str] = field(default_factory=list)
    config: dict = field(default_factory=dict)
    preprocessing: dict = field(default_factory=dict)


def read_checkpoint(path: str | Path, wrapper: str | None = None) -> Checkpoint:
    """Read a file, the files of an index, or a folder, without running any code in them.

    Args:
        path: a .pth, .pt, .bin or .safetensors file; a ``*.index.json``, which names the file of each tensor; or a
            folder with one of ``WEIGHT_FILES``.  A file of such a name is read with what stands beside it.
        wrapper: see ``load_official``.

    Raises:
        ValueError: for what is missing or damaged, or an index that does not agree with its files.
    """
    path = Path(path)
    if path.is_dir():
        path = _weights_of(path)
    if path.name.endswith(INDEX):
        checkpoint = Checkpoint(_read_shards(path))
    else:
        checkpoint = Checkpoint(*load_official(path, wrapper))
    if path.name in WEIGHT_FILES:
        checkpoint.config = _read_json(path.with_name(CONFIG))
        checkpoint.preprocessing = _read_json(path.with_name(PREPROCESSING)) or (
            _read_json(path.with_name(PROCESSOR)).get('image_processor', {}))
    return checkpoint


def _weights_of(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f'{folder} holds none of {", ".join(WEIGHT_FILES)}: it has '
                     f'{listed(sorted(entry.name for entry in folder.iterdir())) or "nothing"}. Name the file itself')


def _read_shards(index: Path) -> dict[str, Tensor]:
    places = _read_json(index).get('weight_map')
    if not isinstance(places, dict) or not places:
        raise ValueError(f'{index} has no weight_map, which names the file of each tensor')
    state = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise ValueError(f'{index} names {name}, wanted a file beside it')
        shard, _, _ = load_official(index.with_name(name))
        lacking = [key for key, place in places.items() if place == name and key not in shard]
        if lacking:
            raise ValueError(f'{index.with_name(name)} lacks {len(lacking)} keys that {index.name} places there: '
                             f'{listed(lacking)}')
        state |= shard
    surplus = [key for key in state if key not in places]
    if surplus:
        raise ValueError(f'{index} does not name {len(surplus)} keys of its files: {listed(surplus)}')
    return state


def _read_json(path: Path) -> dict:
    """The object in a JSON file; empty if there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} cannot be read as JSON: {error}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}, wanted an object')
    return content
