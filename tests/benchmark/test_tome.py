"""Token merging: exact where nothing merges, as many tokens as wanted, means that a loop agrees with."""
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from apt_dense.benchmark.tome import Merging, TokenMerging, merging_schedule
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
    monkeypatch.setattr('apt_dense.core.eva02.resample_table',  # not counted, and products
                        lambda table, height, width: table.mean((0, 1)).expand(height, width, -1))
    model, x = dense(geometry), torch.randn(2, 3, 32, 64)
    merging = TokenMerging(model, kept)
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=SDPA) as counter:
        outputs = merging(x)
    assert all(output.shape == (2, 16, 8, 16) for output in outputs)
    assert merging.multiply_adds(merging.last_layout).total == counter.get_total_flops() // 2


@pytest.mark.parametrize(('kept', 'blocks', 'depth'), [(0.9, [1, 3, 5, 7, 9], 12), (0.5, [2, 5, 8, 11, 14, 17, 20], 24),
                                                       (0.3, list(range(23)), 24), (1.0, [0], 2)])
def test_schedule_hits_the_mean(kept, blocks, depth):
    left = dict(zip(blocks, merging_schedule(1024, kept, blocks, depth), strict=True))
    now, layers = 1024, []
    for index in range(depth):
        layers.append(now)
        merged = left.get(index, now)
        assert now / 2 <= merged <= now
        now = merged
        layers.append(now)
    assert sum(layers) / len(layers) / 1024 == pytest.approx(kept, abs=0.003)


def test_out_of_reach():
    with pytest.raises(ValueError, match=r'kept=0.2: merging in blocks \[1, 3\] of 4 gives 0.656 to 1'):
        merging_schedule(64, 0.2, [1, 3], 4)
    with pytest.raises(ValueError, match='nowhere to merge'):
        TokenMerging(toy_model(img_size=32, patch_size=4, embed_dims=16, depth=2, num_heads=2, window_size=4,
                               global_block_indexes=(1,), pretrain_img_size=32), 0.7)


@pytest.mark.parametrize('has_cls_token', [False, True])
def test_merging_against_a_loop(has_cls_token):
    keys, x, size = torch.randn(2, 9, 4), torch.randn(2, 9, 3), torch.randint(1, 5, (2, 9)).float()
    merging = Merging(keys, 6, has_cls_token)
    merged, sizes = merging.average(x, size)
    for run in range(2):
        cosine = torch.nn.functional.cosine_similarity(keys[run][:, None], keys[run][None], dim=-1)
        best = {a: max(range(1, 9, 2), key=lambda b, a=a: cosine[a, b]) for a in range(0, 9, 2)}
        candidates = [a for a in best if a or not has_cls_token]
        moved = sorted(candidates, key=lambda a: -cosine[a, best[a]])[:3]
        groups = {a: [a] for a in range(9) if a not in moved}
        for a in moved:
            groups[best[a]].append(a)
        assert sorted(sizes[run].tolist()) == sorted(sum(size[run, i].item() for i in group)
                                                     for group in groups.values())
        for holder, group in groups.items():
            token = merging.source[run, holder]
            assert all(merging.source[run, i] == token for i in group)
            weights = size[run, group]
            torch.testing.assert_close(merged[run, token], (x[run, group] * weights[:, None]).sum(0) / weights.sum())
            torch.testing.assert_close(merging.keep(x)[run, token], x[run, holder])


def test_equal_tokens_merge_without_a_trace():
    """Where a run's tokens are pairs of equals, halving and un-merging gives every cell its own value back."""
    pairs = torch.randn(3, 8, 1, 5).expand(3, 8, 2, 5).flatten(1, 2)
    merging = Merging(pairs, 8, False)
    merged, sizes = merging.average(pairs, None)
    assert (sizes == 2).all()
    torch.testing.assert_close(merged.gather(1, merging.source[..., None].expand(-1, -1, 5)), pairs)
