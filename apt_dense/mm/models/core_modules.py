"""The core's modules in mmengine's root registry, one registration for mmdetection and mmsegmentation."""
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from mmengine.registry import MODELS
from torch import Tensor

import apt_dense as core
import apt_dense.core.pyramid
from apt_dense.core.checkpoint_files import listed, load_official
from apt_dense.core.embed import ADDED_PARAMETERS
from apt_dense.core.eva02_keys import describe_other, lacking_layers, looks_official
from apt_dense.core.layer_order import BLOCK
from apt_dense.core.position import positions_fit, resample_positions, table_side
from apt_dense.core.vit_conversion import OPTIONAL
from apt_dense.mm.compat import plain_operators
from apt_dense.mm.errors import DataError

BACKBONE = re.compile(r'pos_embed$|(?:blocks|patch_embed|norm_pre)\.')  # names of a file's backbone
DISPENSABLE = tuple(name.removeprefix('backbone.') for name in OPTIONAL)


class PretrainedMixin:
    """Mixin before a family of the core: mmengine's ``init_cfg``, with files that do not fit refused."""

    def __init__(self, *args, init_cfg: dict | Sequence[dict] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.init_cfg = init_cfg

    def init_weights(self) -> None:
        """Load what ``init_cfg`` names.

        Raises:
            DataError: if that is a file of which mmengine would load nothing, without a word: an official one, another
                model's, or one with the backbone elsewhere.
        """
        steps = [self.init_cfg] if isinstance(self.init_cfg, dict) else self.init_cfg or ()
        for step in steps:
            if step.get('type') in ('Pretrained', PretrainedInit) and os.path.isfile(step['checkpoint']):
                self._check_pretrained(step['checkpoint'], step.get('prefix'))
        super().init_weights()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Load; a position table of another grid is resampled to this model's, as the official code does at the start.

        mmengine would only log the difference, and train with a table of random numbers.
        """
        key, own = f'{prefix}pos_embed', self.pos_embed
        table = state_dict.get(key)
        if table is not None and own is not None and table.shape != own.shape and (
                positions_fit(table.shape, own.shape, self.prefix_positions)):
            state_dict[key] = resample_positions(table, table_side(own, self.prefix_positions), self.prefix_positions)
            print_log(f'{key}: resampled from {table.shape[1] - self.prefix_positions} positions to '
                      f'{own.shape[1] - self.prefix_positions}', 'current')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def lacking(self, names: Iterable[str], prefix: str) -> list[str]:
        """Which parameters of the model's first block are not among the names, below a prefix."""
        own = [name for name in self.state_dict() if name.startswith('blocks.0.')]
        return sorted(f'{prefix}{name}' for name in own if f'{prefix}{name}' not in names)

    def describe_other(self, names: Iterable[str], prefix: str) -> str:
        """What a file of another model holds, and what was wanted of it."""
        return (f'{listed(names)}; there is no {listed(self.lacking(names, prefix), 4)}. A file of timm or '
                'transformers is converted by: python tools/model_converters/vit_to_mm.py FILE CONVERTED.pth')

    def _check_pretrained(self, path: str, prefix: str | None) -> None:
        """Raise DataError unless mmengine finds the backbone in a file, below the prefix."""
        state, entry, others = load_official(path)
        task = looks_official(state)
        if task and isinstance(self, core.APTEVA02):
            raise DataError(f'init_cfg: {path} is an official EVA-02 {task} checkpoint, whose parameters have other '
                            f'names. Convert it: python tools/model_converters/eva02_to_mm.py {path} CONVERTED.pth')
        if 'state_dict' in others:
            state, entry, _ = load_official(path, 'state_dict')
        below = f'{prefix.removesuffix(".")}.' if prefix else ''
        found = [known for known in (below, 'backbone.', '') if not self.lacking(state, known)]
        if not found:
            raise DataError(f'init_cfg: {path} holds no {FAMILIES[type(self).__name__]} backbone: got '
                            f'{self.describe_other(state, below)}')
        if found[0] != below:
            raise DataError(f'init_cfg: {path} holds its backbone below {found[0]!r}, and prefix is {prefix!r}: set '
                            f'prefix={found[0] or None!r}')
        if entry not in ('', 'state_dict'):
            raise DataError(f"init_cfg: {path} keeps its parameters under {entry!r}, and mmengine looks under "
                            "'state_dict' or in the file itself: save them there")
        misfits = self._misfits(state, below)
        if misfits:
            raise DataError(f'init_cfg: {path} is of another {FAMILIES[type(self).__name__]} backbone than the config: '
                            f'{listed(misfits)}. Give the backbone the sizes of the file, or convert the original file '
                            'by vit_to_mm.py or eva02_to_mm.py with --config')

    def _misfits(self, state: Mapping[str, Tensor], prefix: str) -> list[str]:
        """What mmengine would leave out or leave as it is, of a file that has the backbone below a prefix.

        As strict as the converter: all but what APT or a reduction adds must be there, and of the file's layers the
        model may do without rows before the patches and the last norm alone.
        """
        own, depth = self.state_dict(), len(self.blocks)
        found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        blocks = 1 + max(int(match[1]) for name in found if (match := BLOCK.match(name)))
        if blocks != depth:
            return [f'it has {blocks} {"block" if blocks == 1 else "blocks"}, and the config has {depth}']
        misfits = [f'{name} is {tuple(found[name].shape)}, wanted {tuple(tensor.shape)}' for name, tensor in own.items()
                   if name in found and found[name].shape != tensor.shape and not (
                       name == 'pos_embed' and positions_fit(found[name].shape, tensor.shape, self.prefix_positions))]
        lacking = sorted(name for name in own if name not in found and name not in ADDED_PARAMETERS
                         and not name.startswith('reduction.'))
        left = sorted(name for name in found if BACKBONE.match(name) and name not in (*own, *DISPENSABLE))
        return misfits + [f'{listed(names)} {"is" if len(names) == 1 else "are"} not in the {where}'
                          for names, where in ((lacking, 'file'), (left, 'model')) if names]


FAMILIES = {'APTEVA02': 'EVA-02', 'APTViT': 'plain ViT', 'APTDINOv3': 'DINOv3', 'APTSAM3': 'SAM 3'}


@MODELS.register_module()
class APTEVA02(PretrainedMixin, core.APTEVA02, BaseModule):
    """Backbone: ``apt_dense.APTEVA02`` with mmengine's ``init_cfg``: ``dict(type='Pretrained', checkpoint=...)``, other
    initialisations, or a list of them."""

    def lacking(self, names: Iterable[str], prefix: str) -> list[str]:
        """See ``lacking_layers``."""
        return lacking_layers(names, prefix)

    def describe_other(self, names: Iterable[str], prefix: str) -> str:
        """See ``eva02_keys.describe_other``."""
        return describe_other(names, prefix)


@MODELS.register_module()
class APTViT(PretrainedMixin, core.APTViT, BaseModule):
    """Backbone: ``apt_dense.APTViT`` with mmengine's ``init_cfg``."""


@MODELS.register_module()
class APTDINOv3(PretrainedMixin, core.APTDINOv3, BaseModule):
    """Backbone: ``apt_dense.APTDINOv3`` with mmengine's ``init_cfg``."""


@MODELS.register_module()
class APTSAM3(PretrainedMixin, core.APTSAM3, BaseModule):
    """Backbone: ``apt_dense.APTSAM3`` with mmengine's ``init_cfg``."""


@MODELS.register_module()
class SimpleFPN(apt_dense.core.pyramid.SimpleFeaturePyramid):
    """Neck: ``apt_dense.SimpleFeaturePyramid``, whose maps have the order in memory that RoIAlign wants.

    LayerNorm leaves them with the channels last.  The plain RoIAlign of a CPU takes them as they are.  Others want
    contiguous maps: torchvision's would copy them in each stage, mmcv's compiled one silently pools wrong values.
    """

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """See ``SimpleFeaturePyramid.forward``."""
        maps = super().forward(inputs)
        if plain_operators() is not None and maps[0].device.type == 'cpu':
            return maps
        return tuple(level.contiguous() for level in maps)


@MODELS.register_module()
class LN2d(apt_dense.core.pyramid.LayerNorm2d):
    """Norm layer: LayerNorm over the channels, for ``norm_cfg=dict(type='LN2d', eps=1e-6)``.

    Give eps: mmcv fills in 1e-5 where a norm_cfg has none, and EVA-02 uses 1e-6.
    """
    _abbr_ = 'ln'
