"""RoIAlign, NMS and soft-NMS in plain numpy and torch give what mmcv's compiled operators give.

operators.npz holds what those gave (tests/data/run_compiled_operators.py); where they are installed, random cases are
compared with them too.
"""
import numpy as np
import pytest
import torch
from mmcv.ops import nms, soft_nms
from mmcv.ops.roi_align import roi_align as roi_align_of_mmcv
from mmdet.models.layers import bbox_nms
from mmdet.models.roi_heads.bbox_heads import bbox_head

import apt_dense.mm.det  # noqa: F401  replaces multiclass_nms
from apt_dense.mm.compat import plain_nms, plain_soft_nms
from apt_dense.mm.compat.plain_roi_align import channels_last, roi_align
from tests.mm.compat import operator_sets as sets

ROI_ALIGN_CASES = {case[0]: case[1:] for case in sets.roi_align_cases()}
BOX_CASES = {case[0]: case[1:] for case in sets.box_cases()}


@pytest.fixture(scope='module')
def stored(request) -> dict:
    return request.getfixturevalue('reference')('operators')


def in_order(maps: torch.Tensor, order: str) -> torch.Tensor:
    """A copy of the maps with another order in memory."""
    if order == 'strided':
        return maps.repeat_interleave(2, 0)[::2]
    return maps.clone(memory_format=torch.channels_last if order == 'last' else torch.contiguous_format)


@pytest.mark.parametrize('order', ['first', 'last', 'strided'])
def test_roi_align_is_that_of_the_compiled_operators(stored, order):
    for name, (maps, rois, settings, gradient) in ROI_ALIGN_CASES.items():
        maps = in_order(maps, order).requires_grad_()
        pooled = roi_align(maps, rois, **settings)
        pooled.backward(gradient)
        torch.testing.assert_close(pooled, stored[f'roi_align/{name}/pooled'], atol=1e-6, rtol=0, msg=name)
        torch.testing.assert_close(maps.grad, stored[f'roi_align/{name}/gradient'], atol=5e-6, rtol=0, msg=name)


def test_roi_align_through_mmcvs_function(stored, monkeypatch):
    """mmdet's mask targets call the function, which knows nothing but the extension; many channels, and one."""
    sets.use_operators('plain', monkeypatch)
    for name, (maps, rois, settings, gradient) in ROI_ALIGN_CASES.items():
        maps = maps.clone().requires_grad_()
        arguments = settings['spatial_scale'], settings['sampling_ratio'], 'avg', settings['aligned']
        pooled = roi_align_of_mmcv(maps, rois, settings['output_size'], *arguments)
        pooled.backward(gradient)
        torch.testing.assert_close(pooled, stored[f'roi_align/{name}/pooled'], atol=1e-6, rtol=0, msg=name)
        torch.testing.assert_close(maps.grad, stored[f'roi_align/{name}/gradient'], atol=5e-6, rtol=0, msg=name)
        one = roi_align_of_mmcv(maps.detach()[:, 1:2], rois, settings['output_size'], *arguments)
        torch.testing.assert_close(one, pooled.detach()[:, 1:2], atol=1e-6, rtol=0, msg=name)


def test_gradient_of_roi_align_is_that_of_the_values():
    _, (maps, rois, settings, _) = next(iter(ROI_ALIGN_CASES.items()))
    maps = maps.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: roi_align(x, rois, **settings), maps)


@pytest.mark.parametrize('kind', [torch.float16, torch.bfloat16])
def test_roi_align_of_half_precision_is_float32_rounded(kind):
    """... under autocast too, which would make the products half precision."""
    maps, rois, settings, gradient = ROI_ALIGN_CASES['7x10_3x2_True_0']
    narrow, wide = (maps.to(kind).to(other).requires_grad_() for other in (kind, torch.float32))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        pooled, expected = roi_align(narrow, rois, **settings), roi_align(wide, rois, **settings)
    assert pooled.dtype == kind and expected.dtype == torch.float32
    assert pooled.equal(expected.to(kind))
    torch.testing.assert_close(expected, roi_align(wide, rois, **settings), atol=0, rtol=0)


@pytest.mark.parametrize('box', [[0, 3, 3, 2, 4], [0, 1, 4, 2, 3], [0, 1, 2, float('nan'), 4],
                                 [0, 1, float('nan'), 3, 4], [0, 1, 2, float('inf'), 4]])
def test_roi_align_refuses_what_is_no_box(box):
    maps = torch.zeros(1, 2, 5, 6)
    rois = torch.tensor([[0, 1, 1, 2, 2], box], dtype=torch.float32)
    with pytest.raises(RuntimeError, match=r'wants finite boxes .* x1 <= x2 and y1 <= y2, got \[0.0, '):
        roi_align(maps, rois, (2, 2))
    if np.isfinite(box).all():  # not aligned, each box is at least a cell large
        assert roi_align(maps + 1, rois, (2, 2), aligned=False).eq(1).all()
    else:
        with pytest.raises(RuntimeError, match='wants finite boxes'):
            roi_align(maps, rois, (2, 2), aligned=False)


@pytest.mark.parametrize('image', [-1, 2])
def test_roi_align_refuses_images_that_are_not_there(image):
    with pytest.raises(IndexError, match=rf'boxes of the images \[{min(image, 0)}, {max(image, 0)}\], and maps of 2'):
        roi_align(torch.zeros(2, 2, 5, 6), torch.tensor([[0.0, 1, 1, 2, 2], [image, 1, 1, 2, 2]]), (2, 2))


def test_channels_last_copies_only_what_has_another_order():
    maps = torch.randn(2, 3, 4, 5)
    last = channels_last(maps)
    assert last.equal(maps) and last.permute(0, 2, 3, 1).is_contiguous()
    assert channels_last(last).data_ptr() == last.data_ptr()


@pytest.mark.parametrize('offset', [0, 1])
def test_nms_is_that_of_the_compiled_operators(stored, offset):
    for name, (boxes, scores) in BOX_CASES.items():
        kept = plain_nms.nms(boxes, scores, sets.NMS_THRESHOLD, offset)
        assert kept.tolist() == stored[f'nms/{name}_{offset}'].tolist(), name


@pytest.mark.parametrize('method', plain_soft_nms.METHODS)
@pytest.mark.parametrize('offset', [0, 1])
def test_soft_nms_is_that_of_the_compiled_operators(stored, offset, method):
    for name, (boxes, scores) in BOX_CASES.items():
        found, index = plain_soft_nms.soft_nms(boxes, scores, sets.SOFT_THRESHOLD, sets.SIGMA, sets.MIN_SCORE, method,
                                               offset)
        key = f'soft_nms/{name}_{offset}_{method}'
        assert index.tolist() == stored[f'{key}/index'].tolist(), name
        torch.testing.assert_close(found[:, 4], stored[f'{key}/scores'], atol=1e-6, rtol=0, msg=name)
        assert found[:, :4].equal(boxes[index])


@pytest.mark.parametrize('method', plain_soft_nms.METHODS)
@pytest.mark.parametrize('spare_each', [False, True])
@pytest.mark.parametrize('take', ['_take_on_cpu', '_take_on_gpu'])
def test_soft_nms_of_all_classes_is_that_of_each(method, spare_each, take, monkeypatch):
    """... by the loop of a GPU too, which runs on a CPU as well.  Some scores are no candidates, one class has none."""
    monkeypatch.setattr(plain_soft_nms, '_take_on_cpu', getattr(plain_soft_nms, take))
    random = torch.Generator().manual_seed(3)
    for name in ('1_40', '30_40', '150_40', '30_3'):
        boxes = BOX_CASES[name][0]
        scores = torch.rand(6, len(boxes), generator=random)**torch.tensor([[1.0], [3], [1], [20], [1], [90]])
        scores[torch.rand(scores.shape, generator=random) < 0.2] = -1
        scores[2] = -1
        arguments = sets.SOFT_THRESHOLD, sets.SIGMA, sets.MIN_SCORE, method
        labels, index, values = plain_soft_nms.soft_nms_of_classes(boxes, scores.clone(), *arguments,
                                                                   spare_each=spare_each)
        assert (values[:-1] >= values[1:]).all()
        for label, row in enumerate(scores):
            candidates = (row >= 0).nonzero()[:, 0]
            found, kept = plain_soft_nms.soft_nms(boxes[candidates], row[candidates], *arguments)
            if len(kept) and found[0, 4] < sets.MIN_SCORE and not (spare_each or found[0, 4] == scores.max()):
                found, kept = found[1:], kept[1:]
            assert index[labels == label].tolist() == candidates[kept].tolist(), (name, label)
            torch.testing.assert_close(values[labels == label], found[:, 4], atol=1e-6, rtol=0)


def test_the_best_box_is_kept_whatever_its_score():
    """mmcv does not compare the first box with min_score: that of all classes, or from split_thr boxes on of each."""
    boxes, scores = torch.tensor([[0.0, 0, 4, 4], [9, 9, 12, 12]]), torch.tensor([[0.02, 0.01], [0.03, 0.04]])
    for spare_each, expected in ((False, [(1, 1)]), (True, [(1, 1), (0, 0)])):
        labels, index, _ = plain_soft_nms.soft_nms_of_classes(boxes, scores.clone(), 0.5, 0.5, 0.05, 'linear',
                                                              spare_each=spare_each)
        assert list(zip(labels.tolist(), index.tolist(), strict=True)) == expected


@pytest.mark.parametrize(('limit', 'split'), [(-1, 10000), (-1, 1), (25, 10000)])
@pytest.mark.parametrize('factors', [False, True])
def test_multiclass_nms_is_mmdets_own(limit, split, factors, monkeypatch):
    """Soft-NMS of all classes at once against mmdet's way, by the plain operators too; hard NMS is left to it."""
    sets.use_operators('plain', monkeypatch)
    multiclass_nms = bbox_nms.multiclass_nms
    assert bbox_head.multiclass_nms is multiclass_nms and hasattr(multiclass_nms, 'replaced_by_apt_dense')
    random = torch.Generator().manual_seed(4)
    boxes = BOX_CASES['150_40'][0].sub(BOX_CASES['150_40'][0].amin())
    scores = torch.rand(150, 8, generator=random)**4
    weights = torch.rand(150, generator=random) if factors else None
    for kind in ('soft_nms', 'nms'):
        settings = dict(type=kind, iou_threshold=0.5, split_thr=split) | (dict(min_score=0.01) if kind != 'nms' else {})
        found = multiclass_nms(boxes, scores, 0.02, settings, limit, weights, True)
        expected = multiclass_nms.__wrapped__(boxes, scores, 0.02, settings, limit, weights, True)
        assert len(expected[0]) == 25 if limit == 25 else 100 < len(expected[0]) < 900
        torch.testing.assert_close(found[0], expected[0], atol=2e-5, rtol=0)
        assert found[1].equal(expected[1]) and found[2].equal(expected[2])
        assert found[0][:, :4].equal(boxes[found[2] // 7]) and found[1].equal(found[2] % 7)
    none = multiclass_nms(boxes, scores, 2.0, dict(type='soft_nms', iou_threshold=0.5), return_inds=True)
    assert [tuple(part.shape) for part in none] == [(0, 5), (0,), (0,)]


def random_boxes(number: int, random: torch.Generator) -> torch.Tensor:
    centres, sides = torch.rand(number, 2, generator=random) * 200, torch.rand(number, 2, generator=random)**2 * 90
    return torch.cat([centres - sides / 2, centres + sides / 2], 1)


@pytest.mark.parametrize('seed', range(20))
def test_random_cases_where_the_compiled_operators_are(seed, monkeypatch):
    sets.use_operators('compiled', monkeypatch)
    random = torch.Generator().manual_seed(seed)
    number = int(torch.randint(1, 700, (1,), generator=random))
    boxes, scores = random_boxes(number, random), torch.rand(number, generator=random)
    boxes += torch.randint(0, 3, (number, 1), generator=random) * 300.0
    if seed % 2:
        scores = (scores * 30).round() / 30
        boxes[0] = float('nan')
    assert nms(boxes, scores, 0.4)[1].equal(plain_nms.nms(boxes, scores, 0.4))
    boxes = boxes.nan_to_num(0)
    found, index = soft_nms(boxes, scores, 0.4, min_score=0.02)
    plain, plain_index = plain_soft_nms.soft_nms(boxes, scores, 0.4, 0.5, 0.02, 'linear')
    assert index.equal(plain_index)
    torch.testing.assert_close(found, plain, atol=1e-6, rtol=0)
    maps = torch.randn(2, 5, 30, 41, generator=random)
    rois = torch.cat([torch.randint(0, 2, (number, 1), generator=random).float(), boxes[:, :]], 1)
    expected = roi_align_of_mmcv(maps, rois, (3, 4), 0.2, 2 * (seed % 2), 'avg', seed % 3 > 0)
    torch.testing.assert_close(roi_align(maps, rois, (3, 4), 0.2, 2 * (seed % 2), seed % 3 > 0), expected, atol=2e-6,
                               rtol=0)
