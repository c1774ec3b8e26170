"""Reductions against the public code's runs, and against loops written from the papers."""
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from apt_dense import APTDINOv3, APTViT, TokenLayout
from apt_dense.core.attention import log_sizes, size_channels, varlen_attention, with_size_channels
from apt_dense.core.block_loop import rope_tables
from apt_dense.core.flops import multiply_adds
from apt_dense.core.graphs import PackedInputs
from apt_dense.core.merging import parse_r
from apt_dense.core.reduced import reduced_blocks, rows_by_block
from apt_dense.core.reduction import share_of_each
from apt_dense.core.runs import Runs
from tests.conftest import DATA
from tests.recipes import drawn

from .toys import SPLIT, image_of, normalise, random_scales, randomise

RUNS = {  # of tests/data/reductions.npz
    'tome_vit/r8_prop': dict(type='ToMe', r=8), 'tome_vit/r8': dict(type='ToMe', r=8, proportional=False),
    'tome_vit/sched_prop': dict(type='ToMe', r=[0, 12, 10, 6, 4]), 'tome_vit/decr_prop': dict(type='ToMe', r=(8, -1.0)),
    'tome_vit/cap_prop': dict(type='ToMe', r=40),
    'evit_vit/keep70': dict(type='EViT', rates=0.7, blocks=(1, 3), fuse=False),
    'evit_vit/keep70_fuse': dict(type='EViT', rates=0.7, blocks=(1, 3)),
    'evit_vit/row_fuse': dict(type='EViT', rates=(0.9, 0.8, 0.7, 0.6), blocks=(1, 2, 3, 4)),
    'evit_vit/arg60_fuse': dict(type='EViT', rates=0.6, blocks=(1, 3)),
    'dtem_vit/r8': dict(type='DTEM', r=8), 'dtem_vit/sched': dict(type='DTEM', r=[0, 12, 10, 6, 4, 0]),
    'dtem_vit/cap': dict(type='DTEM', r=40)}
SOFT = {'dtem_vit/train_once': dict(type='DTEM', r=[8, 0, 0, 0, 0, 0]),
        'dtem_vit/train_soft': dict(type='DTEM', r=[8, 12, 6, 0, 4, 8], nearest=5, tau1=0.3, tau2=0.5)}


@pytest.fixture(scope='module')
def stored():
    with np.load(DATA / 'reductions.npz') as file:
        return {key: file[key] for key in file.files}


def public_model(stored: dict, run: str, reduction: dict) -> tuple[APTViT, dict, torch.Tensor]:
    """The model of a run, its head, and the images."""
    name = run.split('/')[0]
    meta = json.loads(str(stored[f'{name}/meta']))
    model = APTViT(img_size=128, embed_dims=64, depth=6, num_heads=4, pretrain_img_size=128, img_mean=(127.5,) * 3,
                   img_std=(127.5,) * 3, reduction=reduction).eval()
    state = {}
    for key, recipe in meta['recipe'].items():
        value = drawn(recipe['draw_key'], recipe['shape'], recipe['scale'], recipe['offset'], meta['seed'])
        key = key.replace('qkv.qkv_layer', 'qkv')
        if 'metric_layer' in key:
            state[f'reduction.metrics.{key.split(".")[1]}.{key.split(".")[-1]}'] = value
        elif '.qkv.' in key:
            state |= {key.replace('qkv', f'{part}_proj'): rows
                      for part, rows in zip('qkv', value.chunk(3), strict=True)}
        else:
            state[key] = value
    model.load_state_dict({key: state[key] for key in model.state_dict()})
    x = (torch.tensor(stored['in/uint8_bhwc']).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    return model, {key: state[f'head.{key}'] for key in ('weight', 'bias')}, x


def steps(model, x):
    """The rows after each block, images apart, and where the first tokens are."""
    layout = model.make_layout(x)
    local, whole = rope_tables(model, layout, torch.float32)
    inputs = PackedInputs(model.embed(x, layout), layout.windows, layout.images, local, whole)
    return reduced_blocks(model, inputs, layout, [(None, None)] * len(model.blocks), False,
                          model.chooser.layout(x).windows.lengths)


@pytest.mark.parametrize('run', RUNS)
@torch.no_grad()
def test_equals_the_public_code(stored, run):
    """Where rows go exactly, rows and logits within their noise."""
    model, head, x = public_model(stored, run, RUNS[run])
    for index, rows, state in steps(model, x):
        for key, found in (('block', rows), ('size', state.sizes)):
            want = stored.get(f'{run}/{key}{index}')
            if want is not None and found is not None:
                torch.testing.assert_close(found.view(2, len(found) // 2, -1).squeeze(-1),
                                           torch.tensor(want).float(), atol=5e-5, rtol=0)
    logits = F.linear(model.norm(rows.view(2, -1, 64)[:, 0]), **head)
    torch.testing.assert_close(logits, torch.tensor(stored[f'{run}/logits']), atol=1e-5, rtol=0)
    own, layout = model.forward_tokens(x)  # the class token stands first there too
    torch.testing.assert_close(F.linear(own.view(2, 65, 64)[:, 0], **head), logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize('run', SOFT)
def test_the_soft_merging_equals_the_public_code(stored, run):
    """Of training: sizes, rows, logits, and the gradients of the metrics and of the model."""
    model, head, x = public_model(stored, run, SOFT[run])
    model.train()
    for index, rows, state in steps(model, x):
        if f'{run}/size{index}' in stored:
            sizes = torch.tensor(stored[f'{run}/size{index}'])
            torch.testing.assert_close(state.sizes.detach().view(2, -1), sizes.view(2, -1), atol=1e-5, rtol=0)
        if f'{run}/class_token_after_block' in stored and index >= 0:
            torch.testing.assert_close(rows.detach().view(2, -1, 64)[:, 0], torch.tensor(
                stored[f'{run}/class_token_after_block'])[:, index], atol=5e-5, rtol=0)
    logits = F.linear(model.norm(rows.view(2, -1, 64)[:, 0]), **head)
    torch.testing.assert_close(logits.detach(), torch.tensor(stored[f'{run}/logits']), atol=1e-5, rtol=0)
    (logits * drawn('probe', (2, 10), 1, 0, 0)).sum().backward()
    compared = 0
    for key, want in stored.items():
        if not key.startswith(f'{run}/grad/'):
            continue
        name, want = key.removeprefix(f'{run}/grad/').replace('qkv.qkv_layer', 'qkv'), torch.tensor(want)
        if 'metric_layer' in name:
            index = name.split('.')[1]
            if index not in model.reduction.metrics:  # nothing goes there
                assert not want.any()
                continue
            got = getattr(model.reduction.metrics[index], name.split('.')[-1]).grad
        elif '.qkv.' in name:
            got = torch.cat([model.get_parameter(name.replace('qkv', f'{part}_proj')).grad for part in 'qkv'])
        else:
            got = model.get_parameter(name).grad
        assert (got - want).abs().max() <= 1e-4 * want.abs().max() + 1e-9, name
        compared += 1
    assert compared >= 3


# --- Loops ---

GRID = (8, 16)
TOY = dict(img_size=(32, 64), patch_size=4, embed_dims=16, depth=4, num_heads=2)
MODELS = {
    'registers': (APTViT, dict(pretrain_img_size=20, num_registers=4, layer_scale=1.0)),
    'no prefix': (APTViT, dict(pretrain_img_size=20, with_cls_token=False, prefix_positions=0)),
    'rotation': (APTDINOv3, {}),
    'windows': (APTDINOv3, dict(window_size=4, global_block_indexes=(1, 3))),
    'APT': (APTViT, dict(pretrain_img_size=20, num_scales=3, thresholds=(SPLIT, SPLIT))),
    'APT with windows': (APTDINOv3, dict(window_size=4, global_block_indexes=(1, 3), num_scales=3,
                                         thresholds=(SPLIT, SPLIT)))}
KINDS = {'ToMe': dict(type='ToMe', kept=0.7), 'one ToMe': dict(type='ToMe', kept=0.7, proportional=False),
         'DTEM': dict(type='DTEM', kept=0.7), 'one DTEM': dict(type='DTEM', kept=0.7, proportional=False),
         'EViT': dict(type='EViT', kept=0.7),
         'EViT without fusion': dict(type='EViT', kept=0.7, fuse=False), 'Random': dict(type='Random', kept=0.6)}
PAIRS = [(kind, name) for kind in KINDS for name in MODELS
         if not (kind.startswith('EViT') and name in ('no prefix', 'windows', 'APT with windows'))]


def build(name: str, kind: str | None):
    family, arguments = MODELS[name]
    model = family(**TOY, **arguments, reduction=KINDS[kind] if kind else None).eval()
    randomise(model)
    return model


def images() -> torch.Tensor:
    return normalise(image_of(random_scales([0.5, 0.9], *GRID, 3)))


def attend_by_a_loop(block, x, rope, runs, sizes):
    """x after the attention's branch, normed, rotated queries and keys, unrotated keys; each run and head alone."""
    normed = block.norm1(x)
    q, unturned, v = block.attn.unturned(normed)
    q, k = block.attn.turn(q, unturned, rope)
    out = torch.zeros_like(v)
    for run in runs:
        for head in range(q.shape[1]):
            logits = q[run, head] @ k[run, head].T / math.sqrt(q.shape[2])
            if sizes is not None:
                logits = logits + torch.tensor([math.log(sizes[row]) for row in run])
            out[run, head] = torch.softmax(logits, 1) @ v[run, head]
    branch = block.attn.proj(out.flatten(1))
    return x + branch * (1 if block.ls1 is None else block.ls1.gamma), normed, q, k, unturned


def merge_by_a_loop(run, prefix, count, metric, rows):
    """One run's rows (lists of old rows in one) after ToMe's step: bipartite matching, one pair at a time."""
    gone = len(run) - count
    if not gone:
        return [[row] for row in run]
    sources = [row for place, row in enumerate(run) if place % 2 == 0 and place >= prefix]
    targets = [row for place, row in enumerate(run) if place % 2 == 1 and place >= prefix]
    unit = F.normalize(metric.float(), dim=-1)
    best = {row: max(targets, key=lambda target, row=row: float(unit[row] @ unit[target])) for row in sources}
    like = {row: float(unit[row] @ unit[best[row]]) for row in sources}
    by_likeness = sorted(sources, key=lambda row: -like[row])
    moved, stay = by_likeness[:gone], by_likeness[gone:]
    if prefix:
        stay = sorted(stay)
    groups = [[row] for row in [*run[:prefix], *stay, *targets]]
    for row in moved:
        next(group for group in groups if group[0] == best[row]).append(row)
    return groups


def reduced_by_loops(model, x):
    """The rows of all first tokens after the last block, by loops over runs and rows."""
    reduction, layout = model.reduction, model.make_layout(x)
    rows, ropes = model.embed(x, layout), list(rope_tables(model, layout, torch.float32))
    per_image = len(layout.windows.lengths) // layout.batch_size
    ends, runs = 0, []
    for length in layout.windows.lengths:
        runs.append(list(range(ends, ends + length)))
        ends += length
    alone = per_image > 1 and layout.num_prefix
    prefixes = [layout.num_prefix if not alone or index % per_image == 0 else 0 for index in range(len(runs))]
    sizes, holds = None, [[row] for row in range(len(rows))]  # the first tokens in each row
    held = {}
    for index, block in enumerate(model.blocks):
        local = model.window_size > 0 and index not in model.global_blocks
        whole = [sum(runs[begin:begin + per_image], []) for begin in range(0, len(runs), per_image)]
        before = rows
        rows, normed, q, k, unturned = attend_by_a_loop(
            block, rows, ropes[0 if local else 1], runs if local else whole,
            sizes if reduction.proportional else None)
        if index in reduction.blocks:
            groups, values, new_runs = [], [], []
            for run, prefix in zip(runs, prefixes, strict=True):
                count = prefix + reduction.left(index, len(run) - prefix)
                if type(reduction).__name__ == 'EViT':
                    found, made = keep_by_a_loop(run, prefix, count, q, k, rows, reduction.fuse)
                else:
                    metric = unturned.mean(1) if type(reduction).__name__ == 'ToMe' else (
                        reduction.metrics[str(index)](normed))
                    found = merge_by_a_loop(run, prefix, count, metric, rows)
                    weight = sizes or [1.0] * len(rows)
                    made = [sum(rows[row] * weight[row] for row in group) / sum(weight[row] for row in group)
                            for group in found]
                new_runs.append(list(range(len(groups), len(groups) + len(found))))
                groups += found
                values += made
            alive = {row for group in groups for row in group}
            for row in range(len(rows)):
                if row not in alive:
                    held |= dict.fromkeys(holds[row], before[row])
            if reduction.uses_sizes:
                sizes = [sum((sizes or [1.0] * len(rows))[row] for row in group) for group in groups]
            holds = [sum((holds[row] for row in group), []) for group in groups]
            firsts = torch.tensor([group[0] for group in groups])
            if type(reduction).__name__ == 'EViT' and reduction.fuse:  # a fused row turns as the first of its run
                starts = torch.tensor([run[0] for run in runs])
                for number, run in enumerate(new_runs):
                    if len(run) < len(runs[number]):
                        firsts[run[-1]] = starts[number]
            ropes = [rope if rope is None else rope[firsts] for rope in ropes]
            rows, runs = torch.stack(values), new_runs
        branch = block.mlp(block.norm2(rows))
        rows = rows + branch * (1 if block.ls2 is None else block.ls2.gamma)
    out = [None] * sum(layout.images.lengths)
    for row, tokens in zip(rows, holds, strict=True):
        for token in tokens:
            out[token] = row
    return torch.stack([held[token] if row is None else row for token, row in enumerate(out)])


def keep_by_a_loop(run, prefix, count, q, k, rows, fuse):
    """EViT's step on one run: groups of old rows, and the new rows."""
    weights = torch.stack([torch.softmax(q[run[0], head] @ k[run, head].T / math.sqrt(q.shape[2]), 0)
                           for head in range(q.shape[1])]).mean(0)
    candidates = sorted(range(prefix, len(run)), key=lambda place: -float(weights[place]))
    kept, gone = candidates[:count - prefix], candidates[count - prefix:]
    groups = [[run[place]] for place in [*range(prefix), *kept]]
    values = [rows[group[0]] for group in groups]
    if fuse and gone:
        groups.append([run[place] for place in gone])
        values.append(sum(weights[place] * rows[run[place]] for place in gone))
    return groups, values


@pytest.mark.parametrize(('kind', 'name'), [pair for pair in PAIRS if pair[0] != 'Random'])
@torch.no_grad()
def test_equals_the_loops(kind, name):
    """Several steps in a row, whatever stands before the patches, in windows, and on merged patches."""
    model, x = build(name, kind), images()
    rows, layout = model.forward_tokens(x)
    wanted = reduced_by_loops(model, x)
    torch.testing.assert_close(rows, wanted if model.norm is None else model.norm(wanted), atol=5e-5, rtol=0)
    torch.testing.assert_close(model(x)[0], layout.expand(rows))
    least = [state.windows.lengths for _, _, state in steps(model, x)][-1]
    assert sum(least) < 0.8 * sum(layout.windows.lengths)


@pytest.mark.parametrize(('kind', 'name'), [pair for pair in PAIRS if pair[0] != 'Random'])  # which draws for the batch
@torch.no_grad()
def test_an_image_alone_and_in_a_batch(kind, name):
    model, x = build(name, kind), images()
    rows, layout = model.forward_tokens(x)
    for image, own in zip(x.split(1), rows.split(layout.images.lengths), strict=True):
        torch.testing.assert_close(model.forward_tokens(image)[0], own, atol=5e-5, rtol=0)


@pytest.mark.parametrize(('kind', 'name'), PAIRS)
def test_gradients_and_recomputation(kind, name):
    """Every parameter takes part; recomputed activations give the same gradients."""
    found = []
    for with_cp in (False, True):
        model, x = build(name, kind), images()
        model.with_cp = with_cp
        model.train(kind.endswith('DTEM'))
        model(x)[0].square().mean().backward()
        found.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, gradient in found[0].items():
        if kind == 'EViT without fusion' and key == 'reg_token' or 'metrics' in key and not kind.endswith('DTEM'):
            continue
        assert gradient is not None and gradient.isfinite().all(), key
        torch.testing.assert_close(found[1][key], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('name', ['registers', 'windows', 'APT'])
@torch.no_grad()
def test_random_keeps_as_many_as_wanted(name):
    model = build(name, None)
    x = images()
    merged = model.make_layout(x)
    family, arguments = MODELS[name]
    for reduction in (dict(type='Random'), dict(type='Random', kept=0.6)):
        model = family(**TOY, **arguments, reduction=reduction).eval()
        randomise(model)
        _, rows, state = next(iter(steps(model, x)))
        layout = model.last_layout if model.last_layout is not None else model.make_layout(x)
        assert layout.is_dense
        if 'kept' not in reduction:
            assert state.windows.lengths == merged.windows.lengths  # as many as the thresholds leave patches
        start = model.embed(x, model.make_layout(x))
        prefix = model.num_prefix
        begin = 0
        for length in state.images.lengths:
            own = rows[begin:begin + length]
            matches = (own[:, None] - start[None]).abs().amax(-1) < 1e-6
            assert matches.any(1).all() and matches[:prefix].any()
            begin += length
        once, again = (model(x)[0] for _ in range(2))
        assert torch.equal(once, again)  # in evaluation the draw is the same
        model.train()
        drops = sum(state.windows.lengths) < layout.num_tokens
        assert torch.equal(model(x)[0], model(x)[0]) != drops


@torch.no_grad()
def test_proportional_attention_counts_rows_by_size():
    """As attention over the tokens themselves, each as often as its row says."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(7, 2, 8) for _ in range(3))
    sizes, runs = torch.tensor([1., 2., 1., 3., 1., 1., 2.]), Runs.from_lengths((4, 3), torch.device('cpu'))
    wide = varlen_attention(*with_size_channels(q, k, v, size_channels(log_sizes(sizes), k.dtype)), runs)
    found, spare = wide[..., :8], wide[..., 8:]
    assert not spare.any()
    for begin, end in ((0, 4), (4, 7)):
        times = sizes[begin:end].long()
        keys, values = (part[begin:end].repeat_interleave(times, 0).transpose(0, 1) for part in (k, v))
        wanted = F.scaled_dot_product_attention(q[begin:end].transpose(0, 1), keys, values).transpose(0, 1)
        torch.testing.assert_close(found[begin:end], wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_random_goes_by_the_image_that_it_is_given():
    """Not by the one whose layout was made last."""
    family, arguments = MODELS['APT']
    model = family(**TOY, **arguments, reduction=dict(type='Random')).eval()
    randomise(model)
    busy, smooth = (normalise(image_of(random_scales([chance], *GRID, 3))) for chance in (0.9, 0.1))
    wanted, layout = model(busy)[0], model.make_layout(busy)
    model.make_layout(smooth)
    assert torch.equal(model.forward_layout(busy, layout)[0], wanted)
    assert not torch.equal(model(smooth)[0], wanted)
    with pytest.raises(ValueError, match='follows from the image, .*: set reduction.kept'):
        multiply_adds(model, layout)
    with pytest.raises(ValueError, match='wanted a multiple of patch_size=4'):
        model(busy[..., :-1])
    with pytest.raises(ValueError, match='finite'):
        model(torch.full_like(busy, torch.nan))


def test_budgets():
    for kept in (0.95, 0.8, 0.6):
        share, tokens, layers = share_of_each(kept, range(11), 12, 0.5), 1.0, []
        for index in range(12):
            layers.append(tokens)
            tokens *= share if index < 11 else 1
            layers.append(tokens)
        assert sum(layers) / 24 == pytest.approx(kept, abs=1e-6)
    assert parse_r((8, -1.0), 6) == [16, 12, 9, 6, 3, 0]
    assert parse_r([3, 2], 4) == [3, 2, 0, 0] and parse_r(5, 2) == [5, 5]
    assert parse_r((8, 0), 3) == [8, 8, 8] and parse_r((8, 1), 3) == [0, 8, 16], 'a pair is (mean, inflection)'
    assert parse_r([8, -1.0], 6) == [16, 12, 9, 6, 3, 0], 'as a file without tuples has it'
    assert parse_r((4, 3.0), 4) == [0, 0, 8, 16], 'nothing merges where the numbers are below 0, as in the public code'


@pytest.mark.parametrize(('dims', 'heads', 'wanted'), [(128, 2, 64), (1024, 16, 128)])
def test_the_metric_of_a_wide_model_is_twice_as_wide(dims, heads, wanted):
    """As in DTEM's code."""
    with torch.device('meta'):
        model = APTViT(**dict(TOY, embed_dims=dims, num_heads=heads), pretrain_img_size=20,
                       reduction=dict(type='DTEM', kept=0.7))
    assert model.reduction.metrics['0'].weight.shape == (wanted, dims)


@pytest.mark.parametrize(('name', 'reduction', 'message'), [
    ('registers', dict(type='PPT'), "unknown reduction type 'PPT': choose one of .*ToMe"),
    ('registers', dict(kept=0.7), 'unknown reduction type None'),
    ('registers', dict(type='ToMe'), 'give kept, a share of the tokens, or r'),
    ('registers', dict(type='ToMe', kept=0.7, r=8), 'give kept, a share of the tokens, or r'),
    ('registers', dict(type='ToMe', kept=0.2), r'kept=0.2: in blocks \[0, 1, 2\] of 4 it can be 0.359 to 1'),
    ('registers', dict(type='ToMe', kept=0.7, blocks=(7,)), r'reduction.blocks holds \[7\], but depth=4'),
    ('registers', dict(type='ToMe', kept=0.7, blocks=()), r'kept=0.7: in blocks \[\] of 4 it can be 1.000 to 1'),
    ('registers', dict(type='ToMe', r=[1] * 5), r'reduction.r=\[1, 1, 1, 1, 1\]: wanted a number of rows, at most 4'),
    ('registers', dict(type='ToMe', r=-1), 'reduction.r=-1: wanted a number of rows, .* none of them below 0'),
    ('registers', dict(type='ToMe', r=0.5), 'reduction.r=0.5: wanted a number of rows'),
    ('registers', dict(type='ToMe', r='8'), "reduction.r='8': wanted a number of rows"),
    ('registers', dict(type='DTEM', r=(4, -3, 2)), r'reduction.r=\(4, -3, 2\): wanted a number of rows'),
    ('registers', dict(type='ToMe', kept=0.7, budget=3), "unexpected keyword argument 'budget'"),
    ('registers', dict(type='EViT', rates=1.5), 'reduction.rates=1.5: wanted one above 0 and at most 1'),
    ('registers', dict(type='Random', kept=0), 'reduction.kept=0 must be above 0'),
    ('no prefix', dict(type='EViT', kept=0.7), 'needs with_cls_token=True and window_size=0'),
    ('windows', dict(type='EViT', kept=0.7), 'needs with_cls_token=True and window_size=0')])
def test_bad_reductions(name, reduction, message):
    family, arguments = MODELS[name]
    with pytest.raises(ValueError, match=message):
        family(**TOY, **arguments, reduction=reduction)
    with pytest.raises(ValueError, match='graph_tokens and reduction'):
        family(**TOY, **arguments, graph_tokens=64, reduction=dict(type='ToMe', kept=0.7))


def test_layouts_stay_those_of_the_first_tokens():
    model, x = build('APT', 'ToMe'), images()
    with torch.no_grad():
        rows, layout = model.forward_tokens(x)
    assert isinstance(layout, TokenLayout) and len(rows) == layout.num_tokens


@pytest.mark.parametrize(('kind', 'name'), PAIRS)
@torch.no_grad()
def test_rows_and_multiply_adds_are_those_that_run(kind, name):
    """The rows of each block are known from the layout, and a counter of products sees as many."""
    model, x = build(name, kind), images()
    layout = model.make_layout(x)
    planned = rows_by_block(model, layout)
    for index, rows, state in steps(model, x):
        if index >= 0:
            assert planned[index].left == state.windows.lengths and sum(planned[index].left) == len(rows)
    counted = multiply_adds(model, layout)
    dense = multiply_adds(build(name, None), layout)
    assert counted.linears < dense.linears and counted.total < dense.total
    with FlopCounterMode(display=False) as counter:
        model.forward_layout(x, layout)
    found = sum(value for key, value in counter.get_flop_counts()['Global'].items() if 'addmm' in str(key) or (
        str(key).endswith('.mm'))) // 2
    learnt = sum(sum(rows.windows) * 16 * 8 for rows in planned[:3]) if kind.endswith('DTEM') else 0
    assert found == counted.linears + counted.patches + counted.details + learnt
