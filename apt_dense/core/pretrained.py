"""Families of the core with the weights of a published model: a local file or folder, or a name on Hugging Face."""
import re
from collections.abc import Mapping
from pathlib import Path

from apt_dense.core.checkpoint_folders import CONFIG, PREPROCESSING, PROCESSOR, WEIGHT_FILES, read_checkpoint
from apt_dense.core.renaming import fit
from apt_dense.core.vit import PackedViT
from apt_dense.core.vit_conversion import OPTIONAL, convert_vit
from apt_dense.core.vit_settings import arguments_of
from apt_dense.core.vit_sizes import FAMILY_CLASSES
from apt_dense.extras import from_extra

MODEL_NAME = re.compile(r'[\w.-]+/[\w.-]+')
# Files that are asked for together; the next group where a model has no weights in this one.
DOWNLOADS = (('model.safetensors.index.json', 'model*.safetensors'),
             ('pytorch_model.bin.index.json', 'pytorch_model*.bin'),
             ('open_clip_model.safetensors', 'open_clip_pytorch_model.bin'))


def load_pretrained(family: type[PackedViT], path_or_name: str | Path, overrides: Mapping) -> PackedViT:
    """A model of a family, in eval mode, with the weights of a file of timm, transformers, open_clip or its authors.

    Args:
        family: the class.
        path_or_name: a file or folder, see ``read_checkpoint``, or a model's name at Hugging Face, OWNER/NAME.
        overrides: arguments of the class.  Those that change a size resample positions and patches.  img_size is, by
            default, that of the position table, rounded up to what the largest patch and the windows need.

    Raises:
        ValueError: if there is nothing of that name, for a file of another family, or whatever else ``convert_vit`` and
            the class refuse.
        ModuleNotFoundError: for a name, where huggingface_hub is not installed.
    """
    checkpoint = read_checkpoint(locate(path_or_name))
    conversion = convert_vit(checkpoint.state_dict)
    if not issubclass(family, FAMILY_CLASSES[conversion.family]):
        raise ValueError(f'{path_or_name} is of the family {conversion.family}: take '
                         f'{conversion.class_name}.from_pretrained')
    arguments = arguments_of(conversion, checkpoint.config, checkpoint.preprocessing, overrides)
    if 'img_size' not in overrides:
        arguments['img_size'] = _whole_image(family, arguments)
    model = family(**arguments).eval()
    own = model.state_dict()
    fit(conversion, {f'backbone.{name}': tensor.shape for name, tensor in own.items()}, OPTIONAL,
        conversion.sizes.get('prefix_positions', 0), what=family.__name__)
    model.load_state_dict(own | {name.removeprefix('backbone.'): tensor
                                 for name, tensor in conversion.state_dict.items()})
    return model


def _whole_image(family: type[PackedViT], arguments: Mapping) -> int:
    """The side of the images of the pre-training in pixels, rounded up to a multiple of the window or largest patch."""
    given = family.default_arguments() | dict(arguments)
    side = given['img_size'] if 'img_size' in arguments else given.get('pretrain_img_size', given['img_size'])
    side = max(side) if isinstance(side, (list, tuple)) else side
    chooser = family.build_chooser(**{name: value for name, value in arguments.items() if name != 'img_size'})
    return -(-side // chooser.size_divisor_px) * chooser.size_divisor_px


def locate(path_or_name: str | Path) -> Path:
    """Where a model is on this machine; one at Hugging Face is fetched, unless it is in its cache.

    Raises:
        ValueError: if it is nowhere.
    """
    path = Path(path_or_name)
    if path.exists():
        return path
    if not MODEL_NAME.fullmatch(str(path_or_name)):
        raise ValueError(f'{path_or_name} does not exist, and is no name of a model at Hugging Face, OWNER/NAME')
    with from_extra('hf'):
        from huggingface_hub import snapshot_download
    for files in DOWNLOADS:
        wanted = [CONFIG, PREPROCESSING, PROCESSOR, *files]
        try:
            folder = Path(snapshot_download(str(path_or_name), allow_patterns=wanted))
        except (OSError, ValueError) as error:
            reason = str(error).partition('\n')[0].rstrip('. ')
            raise ValueError(f'{path_or_name} does not exist here, and was not fetched from Hugging Face: {reason}. '
                             'Without a connection give a local folder') from error
        if any((folder / name).is_file() for name in WEIGHT_FILES):
            return folder
    raise ValueError(f'{path_or_name} at Hugging Face has none of {", ".join(WEIGHT_FILES)}: fetch a file and give its '
                     'path')
