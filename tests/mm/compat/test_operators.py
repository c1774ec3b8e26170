"""Operators of mmcv and mmdet give in bfloat16, and from any memory order, what they give in float32."""
import importlib
import sys

import pytest
import torch
from mmcv.ops import RoIAlign, nms, soft_nms
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

from apt_dense.mm import compat


@pytest.fixture
def boxes_and_scores():
    """Sixty overlapping boxes with distinct scores; bfloat16 holds all of these numbers exactly."""
    generator = torch.Generator().manual_seed(1)
    corners, sizes = (torch.randint(1, 100, (60, 2), generator=generator) for _ in range(2))
    scores = (torch.randperm(60, generator=generator) + 60) / 128
    return torch.cat([corners, corners + sizes], 1).float(), scores


@pytest.mark.parametrize('box_type', [torch.float32, torch.bfloat16])
def test_nms_of_bfloat16_scores_equals_float32(boxes_and_scores, box_type):
    boxes, scores = boxes_and_scores
    for threshold in (0.0, 0.7):
        dets, kept = nms(boxes, scores, 0.5, score_threshold=threshold)
        narrow_dets, narrow_kept = nms(boxes.to(box_type), scores.bfloat16(), 0.5, score_threshold=threshold)
        assert 1 < len(kept) < 60
        assert narrow_kept.equal(kept)
        assert narrow_dets.float().equal(dets)


@pytest.mark.parametrize('box_type', [torch.float32, torch.bfloat16])
def test_soft_nms_of_bfloat16_scores_equals_float32(boxes_and_scores, box_type):
    boxes, scores = boxes_and_scores
    for method in ('linear', 'gaussian', 'naive'):
        dets, kept = soft_nms(boxes, scores, 0.5, min_score=0.3, method=method)
        narrow_dets, narrow_kept = soft_nms(boxes.to(box_type), scores.bfloat16(), 0.5, min_score=0.3, method=method)
        assert 1 < len(kept) < 60
        assert narrow_kept.equal(kept)
        assert narrow_dets.dtype == torch.float32 and narrow_dets.equal(dets)


@pytest.fixture
def feature_map():
    return torch.randn(2, 5, 9, 13, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def rois():
    """(image, x1, y1, x2, y2) in pixels; the maps have a stride of 4 px."""
    return torch.tensor([[0, 3.5, 2.0, 30.0, 20.0], [1, 0, 0, 52, 36], [1, 10, 4, 18, 35], [0, 40, 20, 60, 50.0]])


@pytest.fixture
def roi_align():
    return RoIAlign((3, 4), spatial_scale=0.25, sampling_ratio=0)


def test_roi_align_of_bfloat16_is_float32_rounded(feature_map, rois, roi_align):
    narrow = feature_map.bfloat16().requires_grad_()
    wide = feature_map.bfloat16().float().requires_grad_()
    pooled, expected = roi_align(narrow, rois), roi_align(wide, rois)
    assert pooled.shape == (4, 5, 3, 4)
    assert pooled.dtype == torch.bfloat16
    assert pooled.equal(expected.bfloat16())
    weight = torch.randn(4, 5, 3, 4).bfloat16()
    (pooled * weight).sum().backward()
    (expected * weight).sum().backward()
    assert narrow.grad.equal(wide.grad.bfloat16())


@pytest.mark.parametrize('kind', [torch.float16, torch.float32, torch.float64])
def test_roi_align_leaves_other_types_alone(feature_map, rois, roi_align, kind, monkeypatch):
    """... whichever operators are in use."""
    seen = []
    take = lambda *args: seen.extend(args[:2])  # noqa: E731
    monkeypatch.setattr(sys.modules['mmcv.ops.roi_align'], 'roi_align', take)
    if compat.plain_operators() is not None:
        monkeypatch.setattr(compat.plain_operators(), 'pool', take, raising=False)
    roi_align(feature_map.to(kind), rois.to(kind))
    assert [tensor.dtype for tensor in seen] == [kind, kind]


@pytest.mark.parametrize('kind', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('reorder', [
    lambda x: x.to(memory_format=torch.channels_last), lambda x: x.mT.contiguous().mT,
    lambda x: x.repeat(2, 1, 1, 1)[::2]
], ids=['channels last', 'transposed', 'strided'])
def test_roi_align_does_not_depend_on_the_memory_order(feature_map, rois, roi_align, reorder, kind):
    maps = reorder(feature_map.to(kind)).requires_grad_()
    copy = maps.detach().contiguous().requires_grad_()
    assert not maps.is_contiguous()
    pooled, expected = roi_align(maps, rois), roi_align(copy, rois)
    assert pooled.equal(expected)
    weight = torch.randn_like(expected)
    (pooled * weight).sum().backward()
    (expected * weight).sum().backward()
    assert maps.grad.equal(copy.grad)


def test_extractor_does_not_round_boxes(extractor):
    """The maps' values are x coordinates over 4096, so that what is pooled tells where; bfloat16 holds 2041 as 2040."""
    columns = (torch.arange(1024) * 4 + 2) / 4096
    fine = columns.expand(1, 3, 16, 1024)
    coarse = columns.view(512, 2).mean(1).expand(1, 3, 8, 512)
    rois = torch.tensor([[0, 2041.0, 4, 2059, 60], [0, 1003, 8, 1204, 56], [0, 3333, 0, 3403, 64]])
    centres = (rois[:, 1] + rois[:, 3]) / 2
    torch.testing.assert_close(extractor((fine, coarse), rois).mean((1, 2, 3)) * 4096, centres, atol=0.5, rtol=0)
    narrow = fine.bfloat16(), coarse.bfloat16()
    wide = tuple(level.float() for level in narrow)
    for options in ({}, {'roi_scale_factor': 1.5}):
        pooled = extractor(narrow, rois, **options)
        assert pooled.dtype == torch.bfloat16
        assert pooled.equal(extractor(wide, rois, **options).bfloat16())


def test_detectors_come_with_the_extractors_fix():
    importlib.import_module('apt_dense.mm.det')
    assert hasattr(SingleRoIExtractor.forward, 'replaced_by_apt_dense')


def test_extractor_without_rois_keeps_the_type(extractor):
    maps = torch.ones(1, 3, 16, 24, dtype=torch.bfloat16), torch.ones(1, 3, 8, 12, dtype=torch.bfloat16)
    pooled = extractor(maps, torch.zeros(0, 5))
    assert pooled.shape == (0, 3, 2, 2) and pooled.dtype == torch.bfloat16
