"""The processor of a LLaVA-1.5 with a packed tower: it scores pixels, on the CPU, and writes a token for each patch."""
import copy
from typing import Any

import torch
from torch import nn

from apt_dense.extras import from_extra
from apt_dense.hf.adapting import normalisation_of
from apt_dense.hf.image_patches import choose_patches, count_tokens
from apt_dense.hf.llava import PackedImageFeatures

with from_extra('hf'):
    import numpy as np
    from transformers import LlavaProcessor


def llava_processor(model: nn.Module, processor: LlavaProcessor) -> 'PackedLlavaProcessor':
    """The processor that goes with an adapted model.

    It is called as the other.  What it returns has ``patch_scales`` beside ``pixel_values``: the patches, as chosen
    here, which the model then follows, whatever its device and type.  It holds no part of the model, so that workers
    of a data loader can have it.  Thresholds are the model's of now.

    Args:
        model: adapted by ``adapt_llava``.
        processor: the model's own, which stays as it is.

    Raises:
        ValueError: for a model that is not adapted; or a processor of another patch size, normalisation or image
            token.
    """
    features = getattr(getattr(model, 'model', None), 'get_image_features', None)
    if not isinstance(features, PackedImageFeatures):
        raise ValueError(f'{type(model).__name__} is not adapted: call apt_dense.hf.adapt_llava first')
    if not isinstance(processor, LlavaProcessor) or isinstance(processor, PackedLlavaProcessor):
        raise ValueError(f"got a {type(processor).__name__}, wanted the model's own LlavaProcessor: take it from "
                         'AutoProcessor.from_pretrained')
    _check_fits(processor, model)
    packed = copy.copy(processor)
    packed.__class__ = PackedLlavaProcessor
    packed.patches = (copy.copy(features.tower.packed.chooser), features.at_random, features.repeat)
    return packed


class PackedLlavaProcessor(LlavaProcessor):
    """See ``llava_processor``, which makes it.  It is saved as the ``LlavaProcessor`` that it was.

    Attributes:
        patches: the chooser, and whether at random and repeated.
    """

    def _process_images(self, images: Any, **kwargs) -> tuple[dict, list[str]]:
        processed = self.image_processor(images, **kwargs)
        chooser, at_random, repeat = self.patches
        pixels = torch.stack([torch.as_tensor(np.asarray(image)) for image in processed['pixel_values']])
        patches = choose_patches(chooser, pixels, at_random)
        counts = [patches[0].numel()] * len(patches) if repeat else count_tokens(patches)
        processed['patch_scales'] = patches.numpy()
        return processed, [self.image_token * count for count in counts]

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs) -> Any:
        raise NotImplementedError('how many tokens an image has follows from its pixels: call the processor with it')

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, 'patch_scales']

    def to_dict(self) -> dict[str, Any]:
        plain = copy.copy(self)
        plain.__class__ = LlavaProcessor
        del plain.patches
        return plain.to_dict()


def _check_fits(processor: LlavaProcessor, model: nn.Module) -> None:
    chooser, config = model.model.get_image_features.tower.packed.chooser, model.config
    mean, std = normalisation_of(processor)
    for name, got, wanted in (
            ('patch_size', processor.patch_size, chooser.patch_size),
            ('vision_feature_select_strategy', processor.vision_feature_select_strategy, 'default'),
            ('image_token_id', processor.image_token_id, config.image_token_id)):
        if got != wanted:
            raise ValueError(f"the processor has {name} {got}, and the model {wanted}: take the model's own processor")
    if not np.allclose(mean, chooser.img_mean) or not np.allclose(std, chooser.img_std):
        raise ValueError(f'the processor normalises by {mean} and {std}, and patches are chosen with '
                         f'{chooser.img_mean} and {chooser.img_std}: pass image_processor=processor to adapt_llava')
