"""LLaVA-1.5 with a packed tower: the dense model's outputs, merged tokens, images and prompts of all kinds."""
import copy
import pickle

import pytest
import torch
from torch import nn

from tests.hf.llava_toys import (
    FORMAT,
    GREEDY,
    IMAGE,
    ONE_EACH,
    TEXT,
    THRESHOLD,
    adapted,
    llava,
    own_processor,
    pictures,
)
from tests.hf.models import transformers

transformers_package = transformers()
from apt_dense import hf  # noqa: E402
from apt_dense.core.layout import TokenLayout  # noqa: E402
from apt_dense.hf.image_patches import count_tokens, raster_order  # noqa: E402


@torch.no_grad()
@pytest.mark.parametrize('options', [dict(thresholds=(-1,)), dict(thresholds=(-1, -1)), dict(variant='dense'),
                                     dict(thresholds=(-1,), repeat=True), dict(thresholds=(-1,), variant='random')])
def test_logits_and_text_of_the_dense_model(options):
    model, processor, dense = adapted(**options)
    plain, packed = own_processor()(pictures(), TEXT, **FORMAT), processor(pictures(), TEXT, **FORMAT)
    assert torch.equal(packed.input_ids, plain.input_ids)
    wanted = dense(**plain).logits
    assert (model(**packed).logits - wanted).abs().max() < 1e-4 * wanted.abs().max()
    for how in (GREEDY, dict(max_new_tokens=6, num_beams=3)):
        assert torch.equal(model.generate(**packed, **how), dense.generate(**plain, **how))


def one_by_one(model: nn.Module, image: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """(n, D): what the language model should get for an image, by its tower's dense output at each first cell."""
    height, width = scales.shape
    cells = model.model.vision_tower(image[None], output_hidden_states=True).hidden_states[-2][0, 1:]
    rows = []
    for y in range(height):
        for x in range(width):
            side = 2**int(scales[y, x])
            if y % side == 0 and x % side == 0:
                rows.append(model.model.multi_modal_projector(cells[y * width + x]))
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize('thresholds', [(THRESHOLD,), (THRESHOLD, THRESHOLD)])
def test_merged_tokens_equal_a_loop(thresholds):
    """The tower repeats a token over its cells: the loop takes each token at its first cell, in raster order."""
    model, processor, _ = adapted(thresholds)
    batch = processor(pictures(), ONE_EACH, **FORMAT)
    output = model.model.get_image_features(batch.pixel_values, patch_scales=batch.patch_scales)
    counts = [len(rows) for rows in output.pooler_output]
    assert counts == count_tokens(batch.patch_scales) == (batch.input_ids == IMAGE).sum(1).tolist()
    for image, scales, got in zip(batch.pixel_values, batch.patch_scales, output.pooler_output, strict=True):
        torch.testing.assert_close(got, one_by_one(model, image, scales), atol=1e-4, rtol=1e-4)


def test_counts_of_the_images():
    """8 x 8 cells: half of them merged by four, a quarter, all; with two coarser scales by sixteen."""
    for thresholds, counts in (((THRESHOLD,), [32 + 8, 48 + 4, 16]), ((THRESHOLD,) * 2, [32 + 2, 48 + 1, 4])):
        batch = adapted(thresholds)[1](pictures(), ONE_EACH, **FORMAT)
        assert (batch.input_ids == IMAGE).sum(1).tolist() == counts


def test_raster_order_by_first_cell():
    """2 x 4 cells of two images, each with a patch of four: it stands where its first cell would."""
    scales = torch.tensor([[[1, 1, 0, 0], [1, 1, 0, 0]], [[0, 0, 1, 1], [0, 0, 1, 1]]])
    layout = TokenLayout.from_scales(scales, 0, 2, num_prefix=1)
    order = raster_order(layout)
    y, x = (values[order].tolist() for values in layout.cell_yx)
    assert list(zip(y, x, strict=True)) == [(0, 0), (0, 2), (0, 3), (1, 2), (1, 3),
                                            (0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert layout.scales[order].tolist() == [1, 0, 0, 0, 0, 0, 0, 1, 0, 0]


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other():
    model, processor, _ = adapted()
    together = model(**processor(pictures(), ONE_EACH, **FORMAT)).logits[:, -1]
    for index, (image, text) in enumerate(zip(pictures(), ONE_EACH, strict=True)):
        alone = model(**processor(image, text, **FORMAT)).logits[:, -1]
        torch.testing.assert_close(together[index:index + 1], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_generation_with_and_without_a_cache():
    """Rows of different lengths, with two images, padded at the left."""
    model, processor, _ = adapted()
    batch = processor(pictures(), TEXT, **FORMAT)
    assert torch.equal(model.generate(**batch, **GREEDY), model.generate(**batch, **GREEDY, use_cache=False))
    alone = [model.generate(**processor(images, text, **FORMAT), **GREEDY)
             for images, text in ((pictures()[:1], TEXT[0]), (pictures()[1:], TEXT[1]))]
    for got, wanted in zip(model.generate(**batch, **GREEDY), alone, strict=True):
        assert torch.equal(got[-GREEDY['max_new_tokens']:], wanted[0, -GREEDY['max_new_tokens']:])
    beams = model.generate(**batch, max_new_tokens=4, num_beams=2, num_return_sequences=2)
    assert len(beams) == 4
    assert torch.equal(model.generate(**batch, **GREEDY, prefill_chunk_size=16), model.generate(**batch, **GREEDY))


@torch.no_grad()
def test_without_an_image_it_is_the_language_model():
    model, processor, dense = adapted()
    batch = processor(text=['USER: what is red ASSISTANT:'] * 2, **FORMAT)
    assert 'patch_scales' not in batch and torch.equal(model(**batch).logits, dense(**batch).logits)
    assert torch.equal(model.generate(**batch, **GREEDY), dense.generate(**batch, **GREEDY))


@torch.no_grad()
def test_positions_count_the_tokens_that_there_are():
    model, processor, _ = adapted()
    batch = processor(pictures()[:1], TEXT[0], **FORMAT)
    wanted = model(**batch).logits
    positions = torch.arange(batch.input_ids.shape[1])[None]
    assert positions.max() == 40 + len(TEXT[0].split()) - 2
    assert torch.equal(model(**batch, position_ids=positions).logits, wanted)
    assert not torch.allclose(model(**batch, position_ids=positions * 2).logits, wanted)


@torch.no_grad()
def test_patches_are_chosen_by_the_model_where_none_are_given():
    model, processor, _ = adapted()
    batch = processor(pictures(), TEXT, **FORMAT)
    chosen = batch.pop('patch_scales')
    assert torch.equal(model(**batch).logits, model(**batch, patch_scales=chosen).logits)
    assert torch.equal(model.generate(**batch, **GREEDY), model.generate(**batch, **GREEDY, patch_scales=chosen))


@torch.no_grad()
def test_half_precision_follows_the_patches_of_the_processor():
    """Pixels in bfloat16 cannot be scored; the map of patches is of whole numbers, which no cast changes."""
    model, processor, _ = adapted()
    batch = processor(pictures(), TEXT, **FORMAT)
    wanted = model(**batch).logits
    half = copy.deepcopy(batch).to(torch.bfloat16)
    got = model.bfloat16()(**half)
    assert got.logits.dtype == torch.bfloat16 and torch.equal(got.image_outputs.patch_scales, batch.patch_scales)
    assert (got.logits - wanted).abs().mean() < 0.1 * wanted.abs().mean()
    model.generate(**half, **GREEDY)
    with pytest.raises(ValueError, match='give the image in float32'):
        model(**{name: value for name, value in half.items() if name != 'patch_scales'})


class Int8Linear(nn.Module):
    """A product with weights of eight bits, as quantised language models have: no floating-point parameter."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        scale = linear.weight.abs().max() / 127
        self.register_buffer('scale', scale.detach())
        self.weight = nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.to(x.dtype) * self.scale).T


@torch.no_grad()
def test_a_quantised_language_model():
    dense = llava()
    for module in dense.model.language_model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
    model = hf.adapt_llava(copy.deepcopy(dense), 2, (-1,))
    batch = own_processor()(pictures(), TEXT, **FORMAT)
    wanted = dense(**batch).logits
    assert (model(**batch).logits - wanted).abs().max() < 1e-4 * wanted.abs().max()
    tower = llava()
    attention = tower.model.vision_tower.encoder.layers[0].self_attn
    attention.out_proj = Int8Linear(attention.out_proj)
    with pytest.raises(ValueError, match='is a Int8Linear, wanted a plain Linear: .* before its layers are quantised'):
        hf.adapt_llava(tower)


@torch.no_grad()
@pytest.mark.parametrize('first', ['adapted', 'dispatched'])
def test_a_device_map(first):
    """Hooks of accelerate on every part."""
    accelerate = pytest.importorskip('accelerate')
    model, processor, dense = adapted()
    batch = processor(pictures(), TEXT, **FORMAT)
    wanted = model(**batch).logits
    places = {'model.vision_tower': 'cpu', 'model.multi_modal_projector': 'cpu', 'model.language_model': 'cpu',
              'lm_head': 'cpu'}
    if first == 'adapted':
        hooked = accelerate.dispatch_model(model, places, force_hooks=True)
    else:
        hooked = hf.adapt_llava(accelerate.dispatch_model(dense, places, force_hooks=True), 2, (THRESHOLD,))
        hf.load_added(hooked, model.state_dict())
    assert hooked.model.language_model._hf_hook is not None
    assert torch.equal(hooked(**batch).logits, wanted)
    assert torch.equal(hooked.generate(**batch, **GREEDY), hooked.generate(**batch, **GREEDY, use_cache=False))


@torch.no_grad()
def test_baselines():
    """Resizing has no detail branch; Random has as many base patches, at random, the same for an image each time."""
    model, processor, dense = adapted()
    wanted = processor(pictures(), ONE_EACH, **FORMAT)
    resizing, own, _ = adapted(variant='resizing')
    assert not [name for name, _ in resizing.named_parameters() if 'apt.' in name]
    got = own(pictures(), ONE_EACH, **FORMAT)
    assert torch.equal(got.input_ids, wanted.input_ids) and torch.equal(got.patch_scales, wanted.patch_scales)
    random, own, _ = adapted(variant='random')
    got = own(pictures(), ONE_EACH, **FORMAT)
    assert torch.equal(got.input_ids, wanted.input_ids) and not torch.equal(got.patch_scales, wanted.patch_scales)
    assert set(got.patch_scales.unique().tolist()) == {-1, 0}
    alone = own(pictures()[1], ONE_EACH[0], **FORMAT)
    assert torch.equal(alone.patch_scales[0], got.patch_scales[1])
    torch.testing.assert_close(random(**got).logits[1, -1], random(**alone).logits[0, -1], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match='call the model, not its tower'):
        random.model.vision_tower(got.pixel_values)


@torch.no_grad()
def test_random_runs_the_tower_on_the_cells_that_stay():
    """What is left out changes nothing: its pixels may be any."""
    model, processor, _ = adapted(variant='random')
    batch = processor(pictures(), ONE_EACH, **FORMAT)
    gone = (batch.patch_scales < 0).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    wanted = model(**batch).logits
    batch['pixel_values'] = batch.pixel_values.masked_fill(gone, 3.0)
    assert torch.equal(model(**batch).logits, wanted)


@torch.no_grad()
def test_repeated_tokens():
    """The language model gets a merged patch's row at each of its cells, and the dense model's number of tokens."""
    model, processor, _ = adapted()
    repeating = hf.adapt_llava(llava(), 2, (THRESHOLD,), repeat=True)
    repeating.load_state_dict(model.state_dict())
    batch = hf.llava_processor(repeating, own_processor())(pictures(), ONE_EACH, **FORMAT)
    assert (batch.input_ids == IMAGE).sum(1).tolist() == [64] * 3
    repeated = repeating.model.get_image_features(batch.pixel_values).pooler_output
    tokens = model.model.get_image_features(batch.pixel_values).pooler_output
    for cells, rows, scales in zip(repeated, tokens, batch.patch_scales, strict=True):
        layout = TokenLayout.from_scales(scales[None], 0, 2)
        firsts = [int(y) * 8 + int(x) for y, x in zip(*(v[raster_order(layout)] for v in layout.cell_yx), strict=True)]
        assert torch.equal(cells[firsts], rows)
        for cell, row in zip(firsts, rows, strict=True):
            covered = [cell, cell + 1, cell + 8, cell + 9] if scales.flatten()[cell] else [cell]
            assert (cells[covered] == row).all()


def test_gradients_reach_the_added_parameters():
    model, processor, _ = adapted()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in model.model.vision_tower.apt.parameters():
        parameter.requires_grad_(True)
    batch = processor(pictures(), TEXT, **FORMAT)
    labels = batch.input_ids.masked_fill(batch.input_ids == IMAGE, -100)
    model.train()
    model(**batch, labels=labels).loss.backward()
    assert {name.rpartition('apt.')[2] for name, p in model.named_parameters() if p.grad is not None} == {
        'conv_down.weight', 'conv_down.bias', 'zero_mlp.weight', 'zero_mlp.bias'}
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.model.vision_tower.apt.parameters())


@torch.no_grad()
def test_saved_and_opened_again(tmp_path):
    model, processor, _ = adapted()
    batch = processor(pictures(), TEXT, **FORMAT)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    other = transformers_package.LlavaForConditionalGeneration.from_pretrained(tmp_path)
    plain = transformers_package.AutoProcessor.from_pretrained(tmp_path)
    assert type(plain) is transformers_package.LlavaProcessor
    hf.adapt_llava(other.eval(), 2, (THRESHOLD,))
    assert not torch.allclose(other(**batch).logits, model(**batch).logits, atol=1e-4)
    hf.load_added(other, tmp_path)
    again = hf.llava_processor(other, plain)(pictures(), TEXT, **FORMAT)
    torch.testing.assert_close(other(**again).logits, model(**batch).logits)


@torch.no_grad()
def test_copies_and_workers():
    model, processor, _ = adapted()
    batch = processor(pictures(), TEXT, **FORMAT)
    wanted = model(**batch).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        nn.init.zeros_(model.model.vision_tower.apt.zero_mlp.weight)
        assert torch.equal(other(**batch).logits, wanted)
        model.load_state_dict(other.state_dict())
    sent = pickle.loads(pickle.dumps(processor))
    assert torch.equal(sent(pictures(), TEXT, **FORMAT).patch_scales, batch.patch_scales)
