"""Giving the vision encoder of a transformers model packed tokens."""
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from apt_dense.core.layout import TokenLayout
from apt_dense.core.vit import PackedViT
from apt_dense.extras import from_extra
from apt_dense.hf.building import build_packed
from apt_dense.hf.families import Family, family_of, reason_against, supported
from apt_dense.hf.forward import PackedForward

with from_extra('hf'):
    from transformers import PreTrainedModel

SETTINGS = 'apt_dense'  # in the model's own config
HERE_ALONE = ('attn_backend', 'compiled')  # options that change no output
OPTIONS = ('scorer', 'max_tokens', 'max_tokens_per', 'detail_branch', 'rope_anchor', 'pos_anchor', 'attn_backend',
           'compiled', 'proportional_attention')


def adapt(model: nn.Module, num_scales: int, thresholds: Sequence[float], *, submodule: str | None = None,
          image_processor: Any = None, **options) -> nn.Module:
    """Give the vision encoders of a transformers model packed tokens of adaptive size, in place.

    The model keeps its class, its own parameters under their names, and its outputs' types and shapes: a token's row is
    repeated over the cells that it covers.  With thresholds of -1 nothing is merged, and the outputs are what they
    were, to rounding.  What APT adds to an encoder is registered with it, as ``encoder.apt``.  The settings of each are
    noted in ``model.config.apt_dense``, which ``save_pretrained`` writes and ``load_added`` compares.

    Args:
        model: that is, or holds, such encoders; all of them are adapted.
        num_scales: S; the largest patch is 2**(S - 1) of the encoder's patches a side.
        thresholds: S - 1 numbers, fine to coarse: a patch whose score is below its scale's threshold is kept whole.
        submodule: the name of one module of the model: only encoders in it are adapted.
        image_processor: of the model, or its processor: how images are normalised, which the scores undo.  By default
            as the published models of the family are.
        options: scorer, max_tokens, max_tokens_per, detail_branch, rope_anchor, pos_anchor, attn_backend, compiled,
            proportional_attention; see ``PackedViT``.

    Returns:
        The model.

    Raises:
        ValueError: if there is no encoder that can be packed, saying why; or for a wrong argument.  The model is then
            as it was.
        TypeError: for an unknown option.
    """
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise TypeError(f'adapt has no options {unknown}: it has {list(OPTIONS)}')
    encoders = _encoders(model, submodule)
    built = []
    for name, (encoder, family) in encoders.items():
        if 'apt' in encoder._modules:
            raise ValueError(f'{name or "the model"} is adapted already: set packed_encoders(model)[{name!r}]'
                             '.thresholds, or load the model again for other scales')
        mean, std = (family.mean, family.std) if image_processor is None else normalisation_of(image_processor)
        settings = dict(num_scales=num_scales, thresholds=thresholds, img_mean=mean, img_std=std, **options)
        try:
            built.append((encoder, family, *build_packed(encoder, family, settings)))
        except AttributeError as error:
            raise ValueError(f'{type(encoder).__name__} has other parts than in transformers 5.24, with which this was '
                             f'tested ({error}): install that version') from error
    for encoder, family, packed, ties in built:
        packed.train(encoder.training)
        encoder.apt = AddedParts(packed)
        encoder.forward = PackedForward(encoder, family, packed, ties)
    _note_settings(model, encoders, dict(num_scales=num_scales, **options))
    return model


def _note_settings(model: nn.Module, names: Iterable[str], given: dict[str, Any]) -> None:
    """All that outputs depend on and no parameter shows, but thresholds, which may be set at any time."""
    config = getattr(model, 'config', None)
    if config is None:
        return
    settings = {name: value for name, value in PackedViT.default_arguments().items()
                if name in ('num_scales', *OPTIONS) and name not in HERE_ALONE}
    settings.update({name: value for name, value in given.items() if name in settings})
    noted = getattr(config, SETTINGS, None) or {}
    setattr(config, SETTINGS, {**noted, **dict.fromkeys(names, settings)})


def packed_encoders(model: nn.Module) -> dict[str, PackedViT]:
    """The packed encoders of an adapted model, by the names of the modules that they stand in for.

    Their ``thresholds`` can be set, and ``last_layout`` says which patches the last pass had.  They are no modules of
    the model: its own parameters, of which theirs are the same objects, stay under the names that they had.
    """
    return {name: module.apt.packed for name, module in model.named_modules()
            if isinstance(getattr(module, 'apt', None), AddedParts)}


class AddedParts(nn.Module):
    """What APT adds to an encoder: the parameters of the detail branch, and its packed twin.

    Attributes:
        packed: the twin, which is no submodule.
    """

    def __init__(self, packed: PackedViT):
        super().__init__()
        self.conv_down, self.zero_mlp = packed.patch_embed.conv_down, packed.patch_embed.zero_mlp
        self.__dict__['packed'] = packed

    @property
    def thresholds(self) -> tuple[float, ...]:
        """S - 1 numbers, fine to coarse; setting them changes the encoder's."""
        return self.packed.thresholds

    @thresholds.setter
    def thresholds(self, values: Sequence[float]) -> None:
        self.packed.thresholds = values

    @property
    def last_layout(self) -> TokenLayout | None:
        """Of the last forward pass."""
        return self.packed.last_layout

    def train(self, mode: bool = True) -> 'AddedParts':
        self.packed.train(mode)
        return super().train(mode)

    def _apply(self, *args, **kwargs) -> 'AddedParts':
        self.packed.train(self.packed.training)  # forgets what was derived from parameters
        return super()._apply(*args, **kwargs)


def _encoders(model: nn.Module, submodule: str | None) -> dict[str, tuple[nn.Module, Family]]:
    """The encoders that can be packed, by name; ValueError if there is none."""
    modules = dict(model.named_modules())
    if submodule is not None and submodule not in modules:
        raise ValueError(f'{type(model).__name__} has no submodule {submodule!r}')
    below = {name: module for name, module in modules.items()
             if not submodule or name == submodule or name.startswith(f'{submodule}.')}
    found = {name: (module, family) for name, module in below.items() if (family := family_of(module)) is not None}
    if found:
        return found
    for module in below.values():
        reason = reason_against(module)
        if reason is not None:
            raise ValueError(f'{type(module).__name__} cannot have packed tokens: {reason}. Supported are '
                             f'{supported()}')
    names = sorted({type(module).__name__ for module in below.values() if isinstance(module, PreTrainedModel)})
    raise ValueError(f'{type(modules[submodule or ""]).__name__} holds no vision encoder that can be packed, it has '
                     f'{names or "no module of transformers"}. Supported are {supported()}')


def normalisation_of(processor: Any) -> tuple[list[float], list[float]]:
    """Mean and standard deviation in 0..255 of an image processor; ValueError if it does something else."""
    processor = getattr(processor, 'image_processor', processor)
    if getattr(processor, 'rescale_offset', False) or not hasattr(processor, 'image_mean'):
        raise ValueError(f'{type(processor).__name__} does not normalise by image_mean and image_std alone: give '
                         'image_processor an object with these two, three numbers each of images in 0..1')
    factor = getattr(processor, 'rescale_factor', 1 / 255) if getattr(processor, 'do_rescale', True) else 1
    mean, std = (0.0,) * 3, (1.0,) * 3
    if getattr(processor, 'do_normalize', True):
        mean, std = processor.image_mean, processor.image_std
    return [value / factor for value in mean], [value / factor for value in std]
