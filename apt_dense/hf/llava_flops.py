"""Multiply-adds of a LLaVA-1.5 up to its first answered token, counted exactly from its config."""
from dataclasses import dataclass
from typing import Any

import torch

from apt_dense.core.flops import multiply_adds
from apt_dense.core.layout import TokenLayout
from apt_dense.core.plain_vit import APTViT
from apt_dense.core.vit import PackedViT
from apt_dense.extras import from_extra

with from_extra('hf'):
    from transformers import LlavaConfig

# Of the published checkpoints' config.json, their towers with it.
_TOWER = dict(model_type='clip_vision_model', hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
              num_attention_heads=16, image_size=336, patch_size=14)
_7B = dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
_13B = dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40)
LANGUAGE_MODELS = {name: dict(sizes, model_type='llama', vocab_size=32064,
                              num_key_value_heads=sizes['num_attention_heads'])
                   for name, sizes in (('7B', _7B), ('13B', _13B))}


@dataclass(frozen=True)
class LlavaMultiplyAdds:
    """Multiply-adds of one image and its prompt; what is counted is what ``flops.MultiplyAdds`` says.

    Attributes:
        tower: embedding and the blocks up to the one whose output is used.
        projector: on each image token.
        prefill: products of the language model on all tokens, of which each attends to those before it, and the head on
            the last.
    """
    tower: int
    projector: int
    prefill: int

    @property
    def total(self) -> int:
        """Of all three."""
        return self.tower + self.projector + self.prefill


def published_config(name: str, **language: Any) -> LlavaConfig:
    """The config of LLaVA-1.5 '7B' or '13B'; ``language`` replaces sizes of the language model.

    Raises:
        ValueError: for another name.
    """
    if name not in LANGUAGE_MODELS:
        raise ValueError(f'unknown model {name!r}: choose one of {sorted(LANGUAGE_MODELS)}')
    return LlavaConfig(vision_config=_TOWER, text_config={**LANGUAGE_MODELS[name], **language},
                       image_token_index=32000)


def patches_of(num_tokens: int, height: int, width: int) -> torch.Tensor:
    """Patches of one image with so many tokens in two sizes: (1, H, W) int8, see ``choose_patches``.

    The merged ones are evenly spread.

    Raises:
        ValueError: for a number that no such image has.
    """
    cells, blocks = height * width, height * width // 4
    merged, rest = divmod(cells - num_tokens, 3)
    if rest or not 0 <= merged <= blocks:
        raise ValueError(f'num_tokens={num_tokens}: {cells} cells with patches of one and four of them have '
                         f'{blocks} to {cells} tokens, in steps of 3')
    which = torch.zeros(blocks, dtype=torch.int8)
    which[torch.arange(merged) * blocks // max(merged, 1)] = 1
    return which.view(1, height // 2, width // 2).repeat_interleave(2, 1).repeat_interleave(2, 2)


def llava_multiply_adds(config: LlavaConfig, num_tokens: int, text_tokens: int) -> LlavaMultiplyAdds:
    """Count the multiply-adds for one image with two sizes of patches.

    Args:
        config: of LLaVA-1.5.
        num_tokens: image tokens; as many as cells is the dense model.
        text_tokens: of the prompt.

    Raises:
        ValueError: see ``patches_of``.
    """
    tower, vision, text = _tower(config), config.vision_config, config.text_config
    side = vision.image_size // vision.patch_size
    dense = num_tokens == side**2
    scales = patches_of(num_tokens, side, side)
    layout = TokenLayout.from_scales(scales, 0, 1 if dense else 2, num_prefix=1)
    wide, inner = text.hidden_size, text.intermediate_size
    kv = wide // text.num_attention_heads * text.num_key_value_heads
    total = num_tokens + text_tokens
    pairs = total * (total + 1) // 2
    layer = total * (2 * wide**2 + 2 * wide * kv + 3 * wide * inner) + 2 * pairs * wide
    return LlavaMultiplyAdds(multiply_adds(tower, layout).total, num_tokens * (vision.hidden_size * wide + wide**2),
                             text.num_hidden_layers * layer + wide * text.vocab_size)


def _tower(config: LlavaConfig) -> PackedViT:
    """Its blocks up to the one whose output is used, without memory."""
    vision = config.vision_config
    with torch.device('meta'):
        return APTViT(img_size=vision.image_size, pretrain_img_size=vision.image_size, patch_size=vision.patch_size,
                      embed_dims=vision.hidden_size, depth=config.vision_feature_layer % (vision.num_hidden_layers + 1),
                      num_heads=vision.num_attention_heads, mlp='quick_gelu', patch_bias=False, pre_norm=True,
                      mlp_ratio=vision.intermediate_size / vision.hidden_size, num_scales=2, thresholds=(0,))
