"""The forward pass of an encoder of transformers, on packed tokens."""
import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from apt_dense.core.layout import TokenLayout
from apt_dense.core.vit import PackedViT
from apt_dense.extras import from_extra
from apt_dense.hf.building import configured_size
from apt_dense.hf.families import Family
from apt_dense.hf.outputs import Rows, backbone_output, model_output, selected_states
from apt_dense.hf.ties import Ties

with from_extra('hf'):
    from transformers.backbone_utils import BackboneMixin

# Of the losses and of language models beside the encoder, which hand them to all of their parts.
NOT_FOR_ENCODERS = ('num_items_in_batch', 'cu_seq_lens_q', 'cu_seq_lens_k', 'max_length_q', 'max_length_k')
WHY_NOT = {
    'output_attentions': 'packed tokens attend in one fused kernel, which keeps no attention maps',
    'bool_masked_pos': 'masked patches are of one size: masked image modelling needs the model as it was',
    'attention_mask': 'packed tokens attend to all others of their image',
    'head_mask': 'packed tokens attend in one fused kernel, which cannot leave heads out'}


class PackedForward:
    """Stands in for ``encoder.forward``: the same arguments, and outputs of the same type and shape.

    Args:
        encoder: of transformers.
        family: the encoder's.
        packed, ties: of ``build_packed``.

    Source: the outputs are those of transformers' own forward passes; rows are repeated over the cells that they cover.
    """

    def __init__(self, encoder: nn.Module, family: Family, packed: PackedViT, ties: Ties):
        self.encoder = encoder
        self.family = family
        self.packed = packed
        self.ties = ties

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the class's own pass, which trainers look up."""
        return _signature(type(self.encoder))

    def __call__(self, *args, **kwargs) -> Any:
        given = self.__signature__.bind(*args, **kwargs).arguments
        given |= given.pop('kwargs', {})
        config = self.encoder.config
        image, return_dict = given.pop('pixel_values', None), given.pop('return_dict', None)
        asked = given.pop('output_hidden_states', getattr(config, 'output_hidden_states', False))
        given.setdefault('output_attentions', getattr(config, 'output_attentions', False))
        interpolates = given.pop('interpolate_pos_encoding', None)
        _check_arguments(type(self.encoder).__name__, given)
        self._get_ready(image, interpolates)
        output = self._run(image, selected_states(asked, self.packed))
        return output.to_tuple() if (config.return_dict if return_dict is None else return_dict) is False else output

    def hidden_rows(self, image: Tensor, layout: TokenLayout, index: int) -> Tensor:
        """One hidden state, without repetition over cells.

        Args:
            image: (B, 3, H, W), normalised, on the encoder's device; of any floating type.
            layout: its patches.
            index: 0 is what enters the first block, i what leaves the i-th.

        Returns:
            (T, C) in the order of the layout.

        Raises:
            ValueError: for an image or a layout that does not fit.
        """
        self._get_ready(image, None)
        image = image.to(self.packed.patch_embed.proj.weight.dtype)
        return self.packed.block_rows(image, layout, frozenset([index - 1]))[0]

    def _get_ready(self, image: Tensor | None, interpolates: bool | None) -> None:
        self.ties.hold()
        self._check_image(image, interpolates)
        _check_training(self.encoder)
        self.packed.with_cp = self.encoder.training and any(
            getattr(layer, 'gradient_checkpointing', False) for layer in self.family.layers_of(self.encoder))

    def _run(self, image: Tensor, asked: frozenset[int] | None) -> Any:
        encoder, packed = self.encoder, self.packed
        layout = packed.make_layout(image)  # before the cast: half precision would round grey levels
        image = image.to(packed.patch_embed.proj.weight.dtype)
        build = backbone_output if isinstance(encoder, BackboneMixin) else model_output
        return build(encoder, self.family, Rows(packed, image, layout), asked)

    def _check_image(self, image: Tensor | None, interpolates: bool | None) -> None:
        """Raise ValueError for an image that the encoder does not take, or whose grid is not whole patches."""
        name, packed = type(self.encoder).__name__, self.packed
        if image is None or image.ndim != 4:
            raise ValueError(f'{name} got pixel_values {None if image is None else tuple(image.shape)}, wanted '
                             '(B, 3, H, W)')
        device = packed.patch_embed.proj.weight.device
        if image.device != device:
            raise ValueError(f'{name} is on {device}, and got an image on {image.device}: move one of them; on several '
                             'GPUs use DistributedDataParallel, nn.DataParallel does not copy packed encoders')
        size, wanted = tuple(image.shape[2:]), configured_size(self.encoder)
        takes = self.family.takes
        if interpolates and takes == 'configured':
            raise ValueError(f'{name} has no interpolate_pos_encoding: its positions are tiled, leave it out')
        if size != wanted and (takes == 'configured' or takes == 'flag' and not interpolates):
            remedy = 'resize to that, or pass interpolate_pos_encoding=True' if takes == 'flag' else 'resize to that'
            raise ValueError(f'the image is {size[0]}x{size[1]} px, and {name} is configured for '
                             f'{wanted[0]}x{wanted[1]}: {remedy}')
        divisor = packed.size_divisor_px
        if any(side % divisor for side in size):
            height, width = (-(-side // divisor) * divisor for side in size)
            flag = ' and interpolate_pos_encoding=True' if takes == 'flag' and size == wanted else ''
            raise ValueError(
                f'the image is {size[0]}x{size[1]} px, and with num_scales={packed.num_scales} over patches of '
                f'{packed.patch_size} px the sides must be multiples of {divisor} px: resize or pad to '
                f"{height}x{width}, by the image processor's size (and crop_size){flag}; or use fewer scales")


@functools.cache
def _signature(kind: type[nn.Module]) -> inspect.Signature:
    """Of the forward pass of a class, without ``self``."""
    own = inspect.signature(kind.forward)
    return own.replace(parameters=list(own.parameters.values())[1:])


def _check_arguments(name: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument that would have an effect, and has none on packed tokens."""
    for argument, value in given.items():
        if value is None or value is False or argument in NOT_FOR_ENCODERS:
            continue
        raise ValueError(f'{name} got {argument}, which packed tokens do not take: '
                         f'{WHY_NOT.get(argument, "apt_dense.hf knows no such argument of an encoder")}. Leave it out, '
                         'or use the model without apt_dense.hf.adapt')


def _check_training(encoder: nn.Module) -> None:
    """Raise ValueError in training for regularisation that packed tokens do not have."""
    if not encoder.training:
        return
    drops = [name for name, module in encoder.named_modules() if _drops(module)]
    if drops:
        raise ValueError(f'{type(encoder).__name__} is in training, with dropout in {drops[:3]}, which packed '
                         "tokens do not have: load the model with the config's dropout rates at 0; drop_path_rate is "
                         'supported')
    config = encoder.config
    moves = [name for name in ('pos_embed_shift', 'pos_embed_jitter', 'pos_embed_rescale')
             if getattr(config, name, None) is not None]
    if moves:
        raise ValueError(f'{type(encoder).__name__} is in training, with positions changed at random by {moves}, which '
                         f"packed tokens' are not: set model.config.{moves[0]} = None, and the like, or call eval() of "
                         'the encoder')


def _drops(module: nn.Module) -> bool:
    rates = (getattr(module, name, 0) for name in ('attention_dropout', 'dropout'))
    return isinstance(module, nn.Dropout) and module.p > 0 or any(
        isinstance(rate, float) and rate > 0 for rate in rates)
