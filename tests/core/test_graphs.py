"""Rows padded to buckets, and the bookkeeping of CUDA graphs; the capture itself needs a GPU."""
import copy

import pytest
import torch

from apt_dense import APTEVA02, TokenLayout
from apt_dense.core import graphs
from apt_dense.core.attention import takes_lengths_from_device
from apt_dense.core.graphs import BlockGraphs, PackedInputs, pad_to_bucket
from apt_dense.core.runs import Runs

from .test_eva02 import CLASS_TOKEN, DENSE, MAPS, MIXED, TOY
from .toys import image_of, normalise, random_scales, toy_model

OTHER = random_scales([0.35, 0.85], 8, 12, 3, seed=3)
SMALLER = random_scales([0.1, 0.2], 8, 12, 3, seed=4)


@pytest.fixture
def stand_in(monkeypatch):
    """A graph that computes when it is replayed, in the same memory each time; the sizes of those captured."""
    captured = []

    def capture(run, padded):
        static = graphs._with_tensors(padded, [torch.full_like(part, 0) for part in graphs._tensors(padded)])
        outputs = [torch.empty_like(output) for output in run(padded)]
        captured.append(len(padded.x))

        def replay():
            for output, found in zip(outputs, run(static), strict=True):
                output.copy_(found)

        return graphs._Graph(graphs._tensors(static), outputs, replay)

    monkeypatch.setattr(BlockGraphs, '_capture', staticmethod(capture))
    forward = BlockGraphs.forward
    monkeypatch.setattr(BlockGraphs, 'forward', lambda self, run, inputs, parameters, capturable, kind: forward(
        self, run, inputs, parameters, True, kind))
    return captured


@pytest.mark.parametrize('bucket', [1, 7, 64, 1000])
@pytest.mark.parametrize('name', MAPS)
@pytest.mark.parametrize('settings', [TOY, CLASS_TOKEN], ids=['windows', 'class_token'])
@torch.no_grad()
def test_padded_rows_change_nothing(settings, name, bucket):
    x, settings = normalise(image_of(MAPS[name])), {**settings, 'out_indices': (0, -1)}
    padded = toy_model(**settings, graph_tokens=bucket)
    for found, wanted in zip(padded(x), toy_model(**settings)(x), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_graph_for_each_set_of_wanted_blocks(stand_in):
    """The same image asked for other blocks' rows does not get those of the first graph."""
    settings = {**TOY, 'out_indices': (0,)}
    plain, graphed = toy_model(**settings), toy_model(**settings, graph_tokens=16)
    x = normalise(image_of(MIXED))
    for _ in range(2):
        torch.testing.assert_close(graphed(x)[0], plain(x)[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(graphed.forward_tokens(x)[0], plain.forward_tokens(x)[0], atol=1e-5, rtol=0)
    assert len(stand_in) == 2


def test_a_model_that_was_made_in_inference_mode(stand_in):
    """Its parameters have no version that would tell of a change."""
    with torch.inference_mode():
        plain, graphed = toy_model(**TOY), toy_model(**TOY, graph_tokens=16)
        x = normalise(image_of(MIXED))
        for _ in range(2):
            torch.testing.assert_close(graphed(x)[0], plain(x)[0], atol=1e-5, rtol=0)
    assert len(stand_in) == 1


def test_a_padded_layout():
    layout = TokenLayout.from_scales(MIXED, 4, 3)
    tokens = layout.num_tokens
    x, rope = torch.randn(tokens, 6), torch.randn(tokens, 2, dtype=torch.complex64)
    padded = pad_to_bucket(PackedInputs(x, layout.windows, layout.images, rope, rope), 32)
    rows = len(padded.x)
    assert rows % 32 == 0 and 0 < rows - tokens <= 32
    assert torch.equal(padded.x[:tokens], x) and not padded.x[tokens:].any() and not padded.local_rope[tokens:].any()
    for runs, own in ((padded.windows, layout.windows), (padded.images, layout.images)):
        assert runs.lengths == (*own.lengths, rows - tokens) and runs.cu_seqlens.tolist() == [
            *own.cu_seqlens.tolist(), rows]
        assert runs.cu_seqlens.dtype == torch.int32 and not runs.equal
    # The launches for other images of this bucket are the same.
    assert (padded.windows.max_seqlen, padded.images.max_seqlen) == (32, 96)


def test_equal_runs_of_padded_rows_are_no_batch():
    """Their lengths are equal by chance: a graph of the batch would be wrong for the next image."""
    runs = Runs.from_lengths((4, 4), torch.get_default_device(), 16)
    inputs = PackedInputs(torch.randn(8, 4), runs, runs, None, torch.randn(8, 2, dtype=torch.complex64))
    padded = pad_to_bucket(inputs, 4)
    assert padded.windows is padded.images
    assert padded.images.lengths == (4, 4, 4) and not padded.images.equal and not padded.images.whole


@pytest.mark.parametrize('settings', [TOY, CLASS_TOKEN, DENSE, dict(TOY, proportional_attention=True)],
                         ids=['windows', 'class_token', 'dense', 'proportional'])
@torch.no_grad()
def test_a_graph_for_each_bucket(stand_in, settings):
    plain, graphed = toy_model(**settings), toy_model(**settings, graph_tokens=16)
    images = [normalise(image_of(scales)) for scales in (MIXED, OTHER, SMALLER, MIXED, OTHER)]
    wanted, found = [plain(x)[0] for x in images], [graphed(x)[0] for x in images]
    for one, other in zip(found, wanted, strict=True):  # a replay leaves what the last one returned alone
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert len(stand_in) == len(set(stand_in)) == (1 if settings is DENSE else len({
        plain.make_layout(x).num_tokens // 16 for x in images}))
    assert settings is DENSE or 1 < len(stand_in) < 4


@torch.no_grad()
def test_other_inputs_have_graphs_of_their_own(stand_in):
    model, x = toy_model(**TOY, graph_tokens=1000), normalise(image_of(MIXED))
    model(x), model(x)
    assert len(stand_in) == 1
    model(x[:1])
    assert len(stand_in) == 2
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        model(x), model(x)
    assert len(stand_in) == 3
    with torch.inference_mode():
        model(x), model(x)
    assert len(stand_in) == 4


CHANGES = {'in place': lambda model: model.blocks[1].mlp.w1.weight.mul_(2), 'eval': lambda model: model.eval(),
           'moved': lambda model: model.float()}


@pytest.mark.parametrize('name', CHANGES)
@torch.no_grad()
def test_graphs_go_when_parameters_change(stand_in, name):
    model, x = toy_model(**TOY, graph_tokens=64), normalise(image_of(MIXED))
    model(x)
    CHANGES[name](model)
    twin = toy_model(**TOY)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), twin(x), atol=1e-5, rtol=0)
    assert len(stand_in) == 2


@torch.no_grad()
def test_a_copy_has_graphs_of_its_own(stand_in):
    model, x = toy_model(**TOY, graph_tokens=64), normalise(image_of(MIXED))
    wanted = model(x)[0]
    twin = copy.deepcopy(model)
    model.blocks[0].mlp.w3.bias.add_(1)
    assert not twin.graphs._kept
    torch.testing.assert_close(twin(x)[0], wanted, atol=1e-5, rtol=0)


def test_training_takes_no_graph(stand_in):
    model, x = toy_model(**TOY, graph_tokens=64, drop_path_rate=0.5).train(), normalise(image_of(MIXED))
    model(x)[0].sum().backward()
    with torch.no_grad():
        model(x)  # drop path draws
    assert not stand_in


def test_lengths_on_the_device(monkeypatch):
    q = torch.zeros(3, 1, 8)
    assert not takes_lengths_from_device(q, 'auto')
    monkeypatch.setattr('apt_dense.core.attention._cuda_kernel_obstacle', lambda q: None)
    assert takes_lengths_from_device(q, 'auto') and takes_lengths_from_device(q, 'torch_varlen')
    assert not takes_lengths_from_device(q, 'sdpa')


@pytest.mark.parametrize('value', [0, -1, 2.5])
def test_a_wrong_bucket(value):
    with pytest.raises(ValueError, match=f'graph_tokens={value} must be a whole number from 1 on, or None'):
        APTEVA02(**TOY, graph_tokens=value)
