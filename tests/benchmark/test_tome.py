"""Token merging: exact where nothing merges, as many tokens as wanted, equal to ToMe's own code and to a slow loop."""
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from apt_dense.benchmark.tome import Merging, TokenMerging, merging_schedule
from tests import oracle
from tests.core.toys import toy_model

GEOMETRIES = {
    'windows': dict(window_size=4, global_block_indexes=(1, 3, 5)),
    'class token': dict(window_size=0, global_block_indexes=range(6), with_cls_token=True, out_indices=(2, 5)),
}
SDPA = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        lambda q, k, v, *args, **options: sdpa_flop_count(q, k, v)}


def dense(geometry: str):
    return toy_model(img_size=(32, 64), patch_size=4, embed_dims=16, depth=6, num_heads=2, pretrain_img_size=32,
                     **GEOMETRIES[geometry])


@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_without_merging_it_is_the_dense_model(geometry):
    model, x = dense(geometry), torch.randn(2, 3, 32, 64)
    with torch.inference_mode():
        wanted, got = model(x), TokenMerging(model, 1.0)(x)
    assert len(wanted) == len(got)
    for one, other in zip(wanted, got, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize('geometry', GEOMETRIES)
@pytest.mark.parametrize('kept', [0.9, 0.6])
def test_multiply_adds_are_those_that_run(geometry, kept, monkeypatch):
    monkeypatch.setattr('apt_dense.core.vit.resample_table',  # not counted, and products
                        lambda table, height, width, antialias=False: table.mean((0, 1)).expand(height, width, -1))
    model, x = dense(geometry), torch.randn(2, 3, 32, 64)
    merging = TokenMerging(model, kept)
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=SDPA) as counter:
        outputs = merging(x)
    assert all(output.shape == (2, 16, 8, 16) for output in outputs)
    assert merging.multiply_adds(merging.last_layout).total == counter.get_total_flops() // 2


@pytest.mark.parametrize('has_cls_token', [False, True])
@pytest.mark.parametrize(('kept', 'blocks', 'depth'), [(0.9, [1, 3, 5, 7, 9], 12), (0.5, [2, 5, 8, 11, 14, 17, 20], 24),
                                                       (0.3, list(range(23)), 24), (1.0, [0], 2)])
def test_schedule_hits_the_mean(kept, blocks, depth, has_cls_token):
    left = dict(zip(blocks, merging_schedule(1024, kept, blocks, depth, has_cls_token), strict=True))
    now, layers = 1024, []
    for index in range(depth):
        layers.append(now)
        merged = left.get(index, now)
        assert now / 2 <= merged <= now
        now = merged
        layers.append(now)
    assert sum(layers) / len(layers) / 1024 == pytest.approx(kept, abs=0.003)


def test_the_most_that_can_merge_leaves_a_class_token_alone():
    """Of an even number of tokens the class token is one of the half that merges, so one fewer can."""
    assert merging_schedule(12, 0.372, [0, 1, 2], 4) == [6, 3, 2]
    assert merging_schedule(12, 0.445, [0, 1, 2], 4, has_cls_token=True) == [7, 4, 3]
    with pytest.raises(ValueError, match='count=6: one matching of 12 tokens leaves 7 to 12'):
        Merging(torch.randn(1, 12, 4), 6, True)
    with pytest.raises(ValueError, match='count=13: one matching of 12 tokens leaves 6 to 12'):
        Merging(torch.randn(1, 12, 4), 13, False)


def test_out_of_reach():
    with pytest.raises(ValueError, match=r'kept=0.2: merging in blocks \[1, 3\] of 4 gives 0.656 to 1'):
        merging_schedule(64, 0.2, [1, 3], 4)
    with pytest.raises(ValueError, match='nowhere to merge'):
        TokenMerging(toy_model(img_size=32, patch_size=4, embed_dims=16, depth=2, num_heads=2, window_size=4,
                               global_block_indexes=(1,), pretrain_img_size=32), 0.7)


@pytest.mark.parametrize('name', ['plain', 'class', 'plain_cap', 'class_cap'])
def test_a_matching_of_the_public_code(name, reference):
    data = reference('tome_vit')
    x, size, dest = (data[f'ops/{name}/{key}'] for key in ('x', 'size', 'dest'))
    merging = Merging(data['ops/metric'], x.shape[1], name.startswith('class'))
    merged, sizes = merging.average(data['ops/x'], data['ops/size'][..., 0])
    assert torch.equal(merging.source, dest.long()) and torch.equal(sizes, size[..., 0])
    torch.testing.assert_close(merged, x)
    torch.testing.assert_close(unmerged(merged, merging.source), data[f'ops/{name}/unmerged'])


@pytest.mark.parametrize('run', ['decr_prop', 'cap_prop'])
def test_matchings_in_a_row_of_the_public_code(run, reference):
    """Given the keys of each block, tokens go where ToMe's own code has put them, and in its order, in all of them."""
    data = reference('tome_vit')
    sizes = torch.ones(2, 65)
    blocks = [block for block in range(6) if f'out/{run}/metric{block}' in data]
    assert len(blocks) >= 5
    for block in blocks:
        keys, size = data[f'out/{run}/metric{block}'], data[f'out/{run}/size{block}']
        merging = Merging(keys, size.shape[1], True)
        _, sizes = merging.average(torch.randn(2, keys.shape[1], 3), sizes)
        assert torch.equal(merging.source, data[f'out/{run}/dest{block}'].long()), block
        assert torch.equal(sizes, size) and (sizes[:, 0] == 1).all(), block


def unmerged(merged: Tensor, source: Tensor) -> Tensor:
    """Merged tokens (R, count, C) -> (R, n, C): to each old token the one that holds it."""
    return merged.gather(1, source[..., None].expand(-1, -1, merged.shape[-1]))


@dataclass
class Row:
    """A token of the loop: the first tokens (their numbers) that it holds, its value, its rotary angles."""
    members: list[int]
    value: Tensor
    angles: dict[bool, list[float]]  # True: in its window; False: in the image


def merge_by_a_loop(rows: list[Row], keys: list[Tensor], count: int, has_cls_token: bool) -> list[Row]:
    """The rows of one run -> count rows, those that stay of the even ones first."""
    targets = range(1, len(rows), 2)
    likeness = {(a, b): torch.cosine_similarity(keys[a], keys[b], dim=0).item()
                for a in range(0, len(rows), 2) for b in targets}
    best = {a: max(targets, key=lambda b, a=a: likeness[a, b]) for a in range(0, len(rows), 2)}
    sources = sorted((a for a in best if a or not has_cls_token), key=lambda a: -likeness[a, best[a]])
    gone = sources[:len(rows) - count]
    stay = [a for a in best if a not in gone] if has_cls_token else sources[len(gone):]
    merged = []
    for place in [*stay, *targets]:
        group = [rows[place], *(rows[a] for a in gone if best[a] == place)]
        size = sum(len(row.members) for row in group)
        value = sum(len(row.members) * row.value for row in group) / size
        merged.append(Row([member for row in group for member in row.members], value, rows[place].angles))
    return merged


def attention_by_a_loop(attn: nn.Module, x: Tensor, rows: list[Row], local: bool) -> tuple[Tensor, Tensor]:
    """Proportional attention among the rows, (n, C) -> the same, and what is compared: the mean key."""
    q, k, v = (layer(x).unflatten(1, (attn.num_heads, -1)) for layer in (attn.q_proj, attn.k_proj, attn.v_proj))
    q, v = q + attn.q_bias.view_as(q[0]), v + attn.v_bias.view_as(v[0])
    angles = [row.angles[local] for row in rows]
    turned_q, turned_k = (torch.stack([oracle.rotate(*pair) for pair in zip(part, angles, strict=True)])
                          for part in (q, k))
    sizes = torch.tensor([float(len(row.members)) for row in rows])
    heads = []
    for head in range(attn.num_heads):
        weights = sizes * (turned_q[:, head] @ turned_k[:, head].T / math.sqrt(q.shape[2])).exp()
        heads.append(weights / weights.sum(1, keepdim=True) @ v[:, head])
    return attn.proj(torch.cat(heads, 1)), k.mean(1)


def features_by_a_loop(model: nn.Module, x: Tensor, counts: dict[int, int]) -> list[Tensor]:
    """What token merging gives that leaves counts[block] tokens of a run after the attention of each block it names."""
    has_cls_token, window = model.cls_token is not None, model.window_size
    shape = (x.shape[0], x.shape[2] // model.patch_size, x.shape[3] // model.patch_size)
    tokens = oracle.token_list(torch.zeros(shape, dtype=torch.int64), window, 1, has_cls_token)
    values = oracle.embed(model.state_dict(), x, tokens, dict(patch_size=model.patch_size, detail_branch='none'))

    def angles(token: oracle.Token, window: int) -> list[float]:
        return oracle.rope_angles(token, shape[1:], window, model.head_dim, 'corner')

    runs = [[Row([t], values[t], {True: angles(tokens[t], window), False: angles(tokens[t], 0)}) for t in run]
            for run in oracle.runs_of(tokens, windowed=True)]
    per_image = len(runs) // shape[0]
    outputs = []
    for index, block in enumerate(model.blocks):
        local = bool(window) and index not in model.global_blocks
        images = runs if local else [sum(runs[i:i + per_image], []) for i in range(0, len(runs), per_image)]
        keys = {}
        for rows in images:
            attended, image_keys = attention_by_a_loop(block.attn, block.norm1(torch.stack([r.value for r in rows])),
                                                       rows, local)
            for row, value, key in zip(rows, attended, image_keys, strict=True):
                row.value = row.value + value
                keys[id(row)] = key
        if index in counts:
            runs = [merge_by_a_loop(run, [keys[id(row)] for row in run], counts[index], has_cls_token) for run in runs]
        for row in sum(runs, []):
            row.value = row.value + block.mlp(block.norm2(row.value[None]))[0]
        if index in model.out_indices:
            holders = {member: row.value for run in runs for row in run for member in row.members}
            outputs.append(oracle.expand(torch.stack([holders[t] for t in range(len(tokens))]), tokens, shape))
    return outputs


@pytest.mark.parametrize('geometry', GEOMETRIES)
@pytest.mark.parametrize('kept', [0.9, 0.7])
def test_mergings_in_a_row_against_a_loop(geometry, kept):
    model, x = dense(geometry), torch.randn(2, 3, 32, 64)
    merging = TokenMerging(model, kept)
    run = 16 if model.window_size else 129
    counts = dict(zip(merging.merging_blocks, merging.schedule(run), strict=True))
    assert len(set(counts.values())) > 1
    with torch.inference_mode():
        got, wanted = merging(x), features_by_a_loop(model, x, counts)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_equal_tokens_merge_without_a_trace():
    """Where a run's tokens are pairs of equals, halving and un-merging gives every cell its own value back."""
    pairs = torch.randn(3, 8, 1, 5).expand(3, 8, 2, 5).flatten(1, 2)
    merging = Merging(pairs, 8, False)
    merged, sizes = merging.average(pairs, None)
    assert (sizes == 2).all()
    torch.testing.assert_close(unmerged(merged, merging.source), pairs)
