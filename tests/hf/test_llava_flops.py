"""Multiply-adds of LLaVA-1.5 against a count by hand, and against the products that a small model really does."""
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.hf.llava_toys import llava
from tests.hf.models import transformers

transformers()
from apt_dense import hf  # noqa: E402
from apt_dense.hf.image_patches import count_tokens  # noqa: E402
from apt_dense.hf.llava_flops import llava_multiply_adds, patches_of, published_config  # noqa: E402


def test_counts_by_hand():
    """The 7B model, 576 and 402 image tokens, 64 of text; CLIP with a class token, 23 of its blocks."""
    config = published_config('7B')
    block, patch = 4 * 1024**2 + 2 * 1024 * 4096, 3 * 14 * 14 * 1024
    dense = llava_multiply_adds(config, 576, 64)
    assert dense.tower == 576 * patch + 23 * (577 * block + 2 * 577**2 * 1024)
    assert dense.projector == 576 * (1024 * 4096 + 4096**2)
    layer = 640 * (4 * 4096**2 + 3 * 4096 * 11008) + 2 * 4096 * (640 * 641 // 2)
    assert dense.prefill == 32 * layer + 4096 * 32064
    apt = llava_multiply_adds(config, 402, 64)  # 58 merged patches and 344 of one cell
    detail = 58 * (4 * 1024**2 + 1024**2)
    assert apt.tower == (576 + 58) * patch + detail + 23 * (403 * block + 2 * 403**2 * 1024)
    layer = 466 * (4 * 4096**2 + 3 * 4096 * 11008) + 2 * 4096 * (466 * 467 // 2)
    assert apt.prefill == 32 * layer + 4096 * 32064
    assert apt.total == apt.tower + apt.projector + apt.prefill
    large = llava_multiply_adds(published_config('13B'), 576, 64)
    assert large.tower == dense.tower
    assert large.prefill == 5120 * 32064 + 40 * (640 * (4 * 5120**2 + 3 * 5120 * 13824) + 5120 * 640 * 641)


@pytest.mark.parametrize('num_tokens', [64, 43])
def test_counts_are_those_of_the_products_that_run(num_tokens):
    """Of torch's own counter, which counts attention among all tokens: the causal half is put in its place."""
    model = hf.adapt_llava(llava(), 1 if num_tokens == 64 else 2, () if num_tokens == 64 else (0.0,))
    model.requires_grad_(False)
    config, scales = model.config, patches_of(num_tokens, 8, 8)
    assert count_tokens(scales) == [num_tokens]
    ids = torch.tensor([[1, *[4] * num_tokens, 7, 8, 9]])
    call = dict(input_ids=ids, pixel_values=torch.randn(1, 3, 64, 64), patch_scales=scales, logits_to_keep=1)
    model(**call)  # makes the table of positions, once
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**call)
    total, wide, layers = ids.shape[1], config.text_config.hidden_size, config.text_config.num_hidden_layers
    future = layers * 2 * wide * (total * (total - 1) // 2)
    assert counter.get_total_flops() // 2 == llava_multiply_adds(config, num_tokens, 4).total + future


def test_patches_with_so_many_tokens():
    for count in (576, 402, 144):
        assert count_tokens(patches_of(count, 24, 24)) == [count]
    for count in (575, 577, 141):
        with pytest.raises(ValueError, match=f'num_tokens={count}: 576 cells .* have 144 to 576 tokens, in steps of 3'):
            patches_of(count, 24, 24)
    with pytest.raises(ValueError, match="unknown model '70B'"):
        published_config('70B')
