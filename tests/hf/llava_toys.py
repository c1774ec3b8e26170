"""A small LLaVA-1.5 with random weights, its processor and pictures, for the tests of apt_dense.hf."""
import copy

import numpy as np
from torch import nn

from tests.hf.models import randomised, transformers

WORDS = ('<pad>', '<s>', '</s>', '<unk>', '<image>', 'USER:', 'ASSISTANT:', 'what', 'is', 'left', 'right', 'red', '.')
THRESHOLD = 4.0  # bits: merges the smooth parts of ``pictures``
IMAGE = 4  # the image token
TEXT = ['USER: <image> what is left ASSISTANT:', 'USER: <image> what <image> right . ASSISTANT:']
ONE_EACH = ['USER: <image> what ASSISTANT:'] * 3
FORMAT = dict(return_tensors='pt', padding=True)
GREEDY = dict(max_new_tokens=6, do_sample=False)


def llava(**settings) -> nn.Module:
    """A LLaVA-1.5 of 8 x 8 patches of 8 px, in evaluation mode.

    Args:
        settings: of its config.
    """
    t = transformers()
    sizes = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2)
    vision = dict(sizes, model_type='clip_vision_model', num_hidden_layers=3, image_size=64, patch_size=8)
    language = dict(sizes, model_type='llama', vocab_size=len(WORDS), num_hidden_layers=2, num_key_value_heads=2,
                    max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config = t.LlavaConfig(**{**dict(text_config=language, vision_config=vision, image_token_index=4,
                                     image_seq_length=64), **settings})
    return randomised(t.LlavaForConditionalGeneration(config)).eval()


def own_processor() -> object:
    """The LlavaProcessor of ``llava``, with a tokenizer of words."""
    t = transformers()
    from tokenizers import Tokenizer, models, pre_tokenizers
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='<s>', eos_token='</s>', pad_token='<pad>',
                                     unk_token='<unk>', additional_special_tokens=['<image>'], padding_side='left')
    side = dict(height=64, width=64)
    images = t.CLIPImageProcessor(size=dict(shortest_edge=64), crop_size=side)
    return t.LlavaProcessor(images, fast, patch_size=8, vision_feature_select_strategy='default',
                            num_additional_image_tokens=1)


def pictures() -> list[np.ndarray]:
    """Three images (64, 64, 3) uint8 of noise, with a smooth half, with a smooth corner, and all smooth."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    noise[0, :, :32], noise[1, :32, :32], noise[2] = 90, 200, 30
    return list(noise)


def adapted(thresholds: tuple[float, ...] = (THRESHOLD,), config: dict | None = None, **options) -> tuple:
    """A model with a detail branch that has an effect, its processor, and the model before."""
    from apt_dense import hf
    dense = llava(**config or {})
    model = hf.adapt_llava(copy.deepcopy(dense), len(thresholds) + 1, thresholds, **options)
    branch = model.model.vision_tower.apt.zero_mlp
    if branch is not None:
        nn.init.normal_(branch.weight, std=0.2)
    return model, hf.llava_processor(model, own_processor()), dense
