"""LLaVA-1.5 with a packed vision tower: its language model gets one row for each patch, however large.

transformers' LLaVA stays as it is but for two methods of the one object: ``get_image_features``, which returns rows of
packed tokens, and ``forward``, which takes the patches that a data loader has chosen.
"""
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from apt_dense.core.layout import TokenLayout
from apt_dense.extras import from_extra
from apt_dense.hf.adapting import adapt
from apt_dense.hf.forward import PackedForward
from apt_dense.hf.image_patches import GivenCells, choose_patches, count_tokens, raster_order

with from_extra('hf'):
    from transformers import LlavaForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutputWithPooling

TOWER = 'model.vision_tower'
VARIANTS = ('apt', 'resizing', 'random', 'dense')
SUPPORTED = ("supported is LLaVA-1.5: LlavaForConditionalGeneration on CLIP's image encoder, features of one layer, "
             "vision_feature_select_strategy='default'")
_TILES = 'it cuts an image into tiles of several sizes and puts their tokens on a grid, with rows for its line ends'
_QUERIES = 'its Q-Former reads the image into a fixed number of tokens, whatever the encoder gives'
REASONS = {**dict.fromkeys(('llava_next', 'llava_next_video', 'llava_onevision', 'video_llava'), _TILES),
           **dict.fromkeys(('blip-2', 'instructblip', 'instructblipvideo'), _QUERIES),
           'vipllava': 'it joins the features of several layers'}


def adapt_llava(model: nn.Module, num_scales: int = 2, thresholds: Sequence[float] = (5.75,), *, variant: str = 'apt',
                repeat: bool = False, image_processor: Any = None, **options) -> nn.Module:
    """Give LLaVA-1.5 a packed vision tower, and its language model as many image tokens as there are patches, in place.

    Prompts must then have as many image tokens as their images have patches: ``llava_processor`` writes them.  Tokens
    of an image are in raster order of each patch's first cell, see ``raster_order``; the language model counts
    positions over the tokens that there are.  With thresholds of -1 logits are those of the model before.

    Args:
        model: a ``LlavaForConditionalGeneration``.
        num_scales: S; the largest patch is 2**(S - 1) of the tower's patches a side.
        thresholds: S - 1 numbers, fine to coarse; the default is the paper's, for 28 px.
        variant: 'apt'; or one of the paper's baselines: 'resizing', without the detail branch, which needs no training;
            'random', as many base patches as there would be patches; 'dense', one patch size.
        repeat: repeat a merged patch's row over its cells after the projector.  The language model then has the dense
            model's number of tokens, and only the tower is faster.
        image_processor: as of ``adapt``.
        options: as of ``adapt``: scorer, max_tokens, ...; the baselines set detail_branch and proportional_attention.

    Returns:
        The model.  What is added stands in ``model.model.vision_tower.apt``.

    Raises:
        ValueError: for another model, saying why it cannot be, or a wrong argument.  The model is then as it was.

    Source: APT (arXiv 2510.18091, table 3); LLaVA-1.5 as in transformers.
    """
    _check_model(model)
    if variant not in VARIANTS:
        raise ValueError(f'unknown variant {variant!r}: choose one of {VARIANTS}')
    if repeat and variant == 'random':
        raise ValueError("repeat=True and variant='random': cells that are left out have no row to repeat, choose one")
    if variant == 'dense':
        num_scales, thresholds = 1, ()
    elif variant != 'apt':
        options = _of_baseline(variant, options)
    adapt(model, num_scales, thresholds, submodule=TOWER, image_processor=image_processor, **options)
    features = PackedImageFeatures(model.model, model.model.vision_tower.forward, variant == 'random', repeat)
    model.model.get_image_features = features
    model.forward = ForwardWithPatches(model, features)
    return model


def _of_baseline(variant: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options with those that make the paper's baseline; ValueError for one that says otherwise."""
    fixed = {'detail_branch': 'none', 'proportional_attention': False}
    for name, value in fixed.items():
        if options.get(name, value) != value:
            raise ValueError(f"variant={variant!r} has {name}={value!r}, got {options[name]!r}: leave it out, or take "
                             "variant='apt'")
    return {**options, **fixed}


@dataclass
class PackedImageOutput(BaseModelOutputWithPooling):
    """What ``get_image_features`` returns.

    Attributes:
        pooler_output: of each image (n_i, D), what the language model gets.
        patch_scales: (B, H, W) int8, which patches these are, see ``choose_patches``.
    """
    patch_scales: Tensor | None = None


class PackedImageFeatures:
    """Stands in for ``LlavaModel.get_image_features``: a list of (n_i, D), n_i tokens of image i.

    Args:
        llava: a LlavaModel.
        tower: its tower's forward pass.
        at_random: see ``choose_patches``.
        repeat: rows over cells.
    """

    def __init__(self, llava: nn.Module, tower: PackedForward, at_random: bool, repeat: bool):
        self.llava, self.tower, self.at_random, self.repeat = llava, tower, at_random, repeat
        if at_random:
            tower.packed.reduction = GivenCells(len(tower.packed.blocks))

    def __call__(self, pixel_values: Tensor, vision_feature_layer: int | None = None,
                 vision_feature_select_strategy: str | None = None, image_sizes: Tensor | None = None,
                 patch_scales: Tensor | None = None, **kwargs) -> PackedImageOutput | tuple:
        """Encode images.

        Args:
            pixel_values: (B, 3, H, W), normalised.
            vision_feature_layer: another hidden state than the config's.
            patch_scales: (B, H, W), the patches; by default they are chosen here.
            kwargs: return_dict; others are of the language model.

        Raises:
            ValueError: for patches of other images, or what LLaVA-1.5 does not have.
        """
        config = self.llava.config
        index = config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        if not isinstance(index, int) or vision_feature_select_strategy not in (None, 'default') or (
                image_sizes is not None):
            raise ValueError(f'got vision_feature_layer={index}, vision_feature_select_strategy='
                             f'{vision_feature_select_strategy!r}, image_sizes={image_sizes}: {SUPPORTED}')
        pixels = pixel_values.to(self.tower.packed.patch_embed.proj.weight.device)
        if patch_scales is None:
            patch_scales = choose_patches(self.tower.packed.chooser, pixels, self.at_random)
        else:
            patch_scales = self._checked(patch_scales.to(pixels.device), pixels)
        states = len(self.tower.packed.blocks) + 1
        rows = (self._rows_of_cells if self.at_random else self._rows_of_patches)(pixels, patch_scales, index % states)
        projected = self.llava.multi_modal_projector(self._beside_projector(rows))
        if self.repeat:
            projected = self._repeated(projected, patch_scales)
        counts = [patch_scales[0].numel()] * len(pixels) if self.repeat else count_tokens(patch_scales)
        output = PackedImageOutput(pooler_output=list(projected.split(counts)), patch_scales=patch_scales)
        return output.to_tuple() if kwargs.get('return_dict') is False else output

    def _checked(self, patch_scales: Tensor, pixels: Tensor) -> Tensor:
        patch = self.tower.packed.patch_size
        wanted = (len(pixels), pixels.shape[2] // patch, pixels.shape[3] // patch)
        if tuple(patch_scales.shape) != wanted or patch_scales.is_floating_point():
            raise ValueError(f'patch_scales is {patch_scales.dtype} {tuple(patch_scales.shape)}, and images of '
                             f'{tuple(pixels.shape)} have whole numbers {wanted}: take both from one call of '
                             'llava_processor')
        return patch_scales

    def _rows_of_patches(self, pixels: Tensor, patch_scales: Tensor, index: int) -> Tensor:
        packed = self.tower.packed
        layout = TokenLayout.from_scales(patch_scales, 0, packed.num_scales, packed.num_prefix)
        return self.tower.hidden_rows(pixels, layout, index)[raster_order(layout)]

    def _rows_of_cells(self, pixels: Tensor, patch_scales: Tensor, index: int) -> Tensor:
        """Of the base patches that are not left out."""
        packed, kept = self.tower.packed, patch_scales.flatten(1) >= 0
        layout = TokenLayout.dense(*patch_scales.shape, 0, packed.num_scales, packed.num_prefix, pixels.device)
        order = raster_order(layout)[kept.flatten()]
        stays = (layout.scales < 0).index_fill(0, order, True)
        packed.reduction.kept_rows = stays
        packed.reduction.lengths_left = tuple((kept.sum(1) + packed.num_prefix).tolist())
        try:
            return self.tower.hidden_rows(pixels, layout, index)[order]
        finally:
            packed.reduction.kept_rows = None

    def _beside_projector(self, rows: Tensor) -> Tensor:
        device = self.llava.multi_modal_projector.linear_1.weight.device
        return rows if device.type == 'meta' else rows.to(device)  # accelerate brings what it offloads, and the rows

    @staticmethod
    def _repeated(rows: Tensor, patch_scales: Tensor) -> Tensor:
        """Rows in raster order -> one for each cell, in raster order."""
        layout = TokenLayout.from_scales(patch_scales, 0, int(patch_scales.max()) + 1)
        packed = torch.empty_like(rows).index_copy(0, raster_order(layout).to(rows.device), rows)
        return layout.expand(packed).flatten(2).transpose(1, 2).flatten(0, 1)


class ForwardWithPatches:
    """Stands in for ``LlavaForConditionalGeneration.forward``: takes ``patch_scales`` too, and checks image tokens."""

    def __init__(self, model: nn.Module, features: PackedImageFeatures):
        self.inner, self.features = model.forward, features
        self.image_token_id = model.config.image_token_id

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the class, and ``patch_scales``: generate and Trainer look it up."""
        own = inspect.signature(self.inner)
        *named, rest = own.parameters.values()
        new = inspect.Parameter('patch_scales', inspect.Parameter.KEYWORD_ONLY, default=None,
                                annotation=Tensor | None)
        return own.replace(parameters=[*named, new, rest])

    def __call__(self, *args, patch_scales: Tensor | None = None, **kwargs) -> Any:
        given = inspect.signature(self.inner).bind_partial(*args, **kwargs).arguments
        given |= given.pop('kwargs', {})
        pixels = given.get('pixel_values')
        encoded = given.get('mm_encoder_outputs') or {}
        if patch_scales is not None and pixels is None:
            raise ValueError('got patch_scales without pixel_values: give both, of one call of llava_processor')
        if pixels is not None and encoded.get('image') is None:
            asked = ('vision_feature_layer', 'vision_feature_select_strategy', 'image_sizes')
            features = self.features(given.pop('pixel_values'), patch_scales=patch_scales,
                                     **{name: given.pop(name) for name in asked if name in given})
            given['mm_encoder_outputs'] = encoded = {**encoded, 'image': features}
        images, ids = encoded.get('image'), given.get('input_ids')
        if getattr(images, 'patch_scales', None) is not None and ids is not None:  # whole images, no chunk of rows
            check_image_tokens((ids == self.image_token_id).sum(1).tolist(),
                               [len(rows) for rows in images.pooler_output])
        return self.inner(**given)


def check_image_tokens(in_prompts: Sequence[int], of_images: Sequence[int]) -> None:
    """Raise ValueError unless each prompt has the image tokens of some of the images, in their order."""
    ends, total = {0, *accumulate(of_images)}, sum(of_images)
    if sum(in_prompts) == total and all(end in ends for end in accumulate(in_prompts)):
        return
    raise ValueError(f'the prompts have {list(in_prompts)} image tokens, and the images have {list(of_images)}: each '
                     'prompt needs as many as its images have patches. Make prompts and images by '
                     'apt_dense.hf.llava_processor(model, processor)')


def _check_model(model: nn.Module) -> None:
    """Raise ValueError for what is no LLaVA-1.5, or is adapted already."""
    config = getattr(model, 'config', None)
    kind = getattr(config, 'model_type', None)
    if not isinstance(model, LlavaForConditionalGeneration):
        reason = REASONS.get(kind, 'it is another class')
        raise ValueError(f'{type(model).__name__} cannot give its language model packed tokens: {reason}; {SUPPORTED}')
    tower = type(model.model.vision_tower).__name__
    wrong = [text for text, bad in (
        (f'the tower {tower}', tower != 'CLIPVisionModel'),
        (f'vision_feature_layer={config.vision_feature_layer}', not isinstance(config.vision_feature_layer, int)),
        (f'vision_feature_select_strategy={config.vision_feature_select_strategy!r}',
         config.vision_feature_select_strategy != 'default')) if bad]
    if wrong:
        raise ValueError(f'this {type(model).__name__} has {", ".join(wrong)}: {SUPPORTED}')
