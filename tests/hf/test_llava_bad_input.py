"""What adapt_llava, its processor and its forward pass refuse."""
import pytest
import torch
from torch import nn

from tests.hf.llava_toys import FORMAT, GREEDY, ONE_EACH, TEXT, THRESHOLD, adapted, llava, own_processor, pictures
from tests.hf.models import transformers

transformers_package = transformers()
from apt_dense import hf  # noqa: E402
from apt_dense.hf.image_patches import count_tokens  # noqa: E402


def test_image_tokens_that_are_not_the_images_are_refused():
    """One too many or too few in a prompt, also where another prompt makes up for it."""
    model, processor, _ = adapted()
    batch = processor(pictures(), ONE_EACH, **FORMAT)
    counts = count_tokens(batch.patch_scales)
    for changes in ((1, 0, 0), (-1, 0, 0), (1, -1, 0), (-1, 0, 1)):
        texts = [' '.join(['USER:', *['<image>'] * (count + change), 'what'])
                 for count, change in zip(counts, changes, strict=True)]
        wrong = processor.tokenizer(texts, **FORMAT)
        images = dict(pixel_values=batch.pixel_values, patch_scales=batch.patch_scales)
        for call in (model, lambda **given: model.generate(**given, **GREEDY)):
            with pytest.raises(ValueError, match=r'have \[.*\] image tokens, .* \[40, 52, 16\].*llava_processor'):
                call(input_ids=wrong.input_ids, attention_mask=wrong.attention_mask, **images)
    plain = own_processor()(pictures(), ONE_EACH, **FORMAT)
    with pytest.raises(ValueError, match=r'have \[64, 64, 64\] image tokens'):
        model(**plain)
    with pytest.raises(ValueError, match='tokens in the prompts should be the same as the number of images'):
        processor(pictures(), TEXT[:1], **FORMAT)


def test_wrong_patches_are_refused():
    model, processor, _ = adapted()
    batch = processor(pictures(), TEXT, **FORMAT)
    scales = batch.pop('patch_scales')
    with pytest.raises(ValueError, match=r'patch_scales is torch.int8 \(2, 8, 8\), and images of \(3, 3, 64, 64\)'):
        model(**batch, patch_scales=scales[:2])
    with pytest.raises(ValueError, match='incomplete patch'):
        model(**batch, patch_scales=scales.roll(1, 2))
    batch.pop('pixel_values')
    with pytest.raises(ValueError, match='patch_scales without pixel_values'):
        model(**batch, patch_scales=scales)


def small(kind: str) -> nn.Module:
    """An untrained model of a class of transformers that LLaVA's tower is not for."""
    t = transformers_package
    sizes = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1)
    vision, text = dict(sizes, image_size=64, patch_size=8), dict(sizes, num_key_value_heads=2, vocab_size=16)
    if kind in ('Blip2', 'InstructBlip'):
        config = getattr(t, f'{kind}Config')(
            vision_config=vision, qformer_config=dict(sizes, encoder_hidden_size=32, vocab_size=16),
            text_config=dict(model_type='opt', vocab_size=16, hidden_size=32, ffn_dim=64, num_hidden_layers=1,
                             num_attention_heads=2, word_embed_proj_dim=32))
    else:
        config = getattr(t, f'{kind}Config')(vision_config=dict(vision, model_type='clip_vision_model'),
                                             text_config=dict(text, model_type='llama'), image_token_index=4)
    with torch.device('meta'):
        return getattr(t, f'{kind}ForConditionalGeneration')(config)


@pytest.mark.parametrize(('kind', 'reason'), [
    ('LlavaNext', 'cuts an image into tiles of several sizes'), ('LlavaOnevision', 'cuts an image into tiles'),
    ('VipLlava', 'joins the features of several layers'), ('Blip2', 'its Q-Former reads the image into a fixed number'),
    ('InstructBlip', 'its Q-Former')])
def test_other_models_are_refused_by_name(kind, reason):
    with pytest.raises(ValueError, match=f'{kind}ForConditionalGeneration cannot .* {reason}.* supported is LLaVA-1.5'):
        hf.adapt_llava(small(kind))


def test_what_is_no_llava_1_5_is_refused():
    siglip = dict(model_type='siglip_vision_model', hidden_size=32, intermediate_size=64, num_attention_heads=2,
                  num_hidden_layers=2, image_size=64, patch_size=8)
    for settings, reason in ((dict(vision_config=siglip), 'the tower SiglipVisionModel'),
                             (dict(vision_feature_layer=[-2, -1]), r'vision_feature_layer=\[-2, -1\]'),
                             (dict(vision_feature_select_strategy='full'), "vision_feature_select_strategy='full'")):
        with pytest.raises(ValueError, match=f'has {reason}.*supported is LLaVA-1.5'):
            hf.adapt_llava(llava(**settings))
    with pytest.raises(ValueError, match='LlavaModel cannot .* another class; supported is LLaVA-1.5'):
        hf.adapt_llava(llava().model)
    model = hf.adapt_llava(llava())
    with pytest.raises(ValueError, match='is adapted already'):
        hf.adapt_llava(model)
    with pytest.raises(ValueError, match="unknown variant 'fewer'"):
        hf.adapt_llava(llava(), variant='fewer')
    with pytest.raises(ValueError, match='no row to repeat'):
        hf.adapt_llava(llava(), variant='random', repeat=True)
    for variant in ('resizing', 'random'):
        with pytest.raises(ValueError, match=f"variant='{variant}' has proportional_attention=False, got True: leave"):
            hf.adapt_llava(llava(), variant=variant, proportional_attention=True)
        with pytest.raises(ValueError, match="detail_branch='none', got 'zero': leave it out, or take variant='apt'"):
            hf.adapt_llava(llava(), variant=variant, detail_branch='zero')


def test_processors_that_do_not_fit_are_refused():
    model, _, dense = adapted()
    with pytest.raises(ValueError, match='is not adapted: call apt_dense.hf.adapt_llava first'):
        hf.llava_processor(dense, own_processor())
    with pytest.raises(ValueError, match='got a PackedLlavaProcessor, wanted'):
        hf.llava_processor(model, hf.llava_processor(model, own_processor()))
    other = own_processor()
    other.patch_size = 16
    with pytest.raises(ValueError, match='the processor has patch_size 16, and the model 8'):
        hf.llava_processor(model, other)
    other = own_processor()
    other.image_processor.image_mean = [0.5] * 3
    with pytest.raises(ValueError, match='pass image_processor=processor to adapt_llava'):
        hf.llava_processor(model, other)
    model = hf.adapt_llava(llava(), 2, (THRESHOLD,), image_processor=other)
    assert hf.llava_processor(model, other)(pictures(), TEXT, **FORMAT).patch_scales.any()
