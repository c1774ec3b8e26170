"""The RoI head as in detectron2, where it differs from mmdetection's."""
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData

import apt_dense.mm.det  # noqa: F401

META = dict(img_shape=(128, 128), ori_shape=(96, 128), scale_factor=(1.0, 1.0), batch_input_shape=(128, 128))


@pytest.fixture
def detector(tiny_config):
    return MODELS.build(tiny_config().model).to(torch.get_default_device())


@pytest.fixture
def features():
    return tuple(torch.randn(2, 64, 32 >> level, 32 >> level, requires_grad=True) for level in range(5))


@pytest.fixture
def proposals():
    boxes = torch.rand(12, 2, 2) * 60
    boxes = torch.cat([boxes[:, 0], boxes[:, 0] + 10 + boxes[:, 1]], 1)
    return [InstanceData(bboxes=boxes[:5]), InstanceData(bboxes=boxes[5:])]


def samples(num_objects: int) -> list[DetDataSample]:
    result = []
    for _ in range(2):
        boxes = torch.tensor([[8., 8., 40., 60.], [50., 30., 100., 90.]])[:num_objects]
        masks = torch.zeros(num_objects, 128, 128, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        instances = InstanceData(bboxes=boxes, labels=torch.arange(num_objects),
                                 masks=BitmapMasks(masks.numpy(force=True), 128, 128))
        result.append(DetDataSample(metainfo=META, gt_instances=instances))
    return result


def test_scores_are_the_mean_of_the_stages_probabilities(detector, features, proposals):
    head = detector.roi_head.eval()
    counts = tuple(len(proposal) for proposal in proposals)
    rois = bbox2roi([proposal.bboxes for proposal in proposals])
    with torch.no_grad():
        last_rois, scores, deltas = head._refine_roi(features, rois, [META, META], counts)
        expected = 0
        for stage in range(3):
            results = head._bbox_forward(stage, features, rois)
            expected = expected + results['cls_score'].softmax(-1) / 3
            if stage < 2:
                boxes = head.bbox_head[stage].bbox_coder.decode(rois[:, 1:], results['bbox_pred'], max_shape=(128, 128))
                rois = torch.cat([rois[:, :1], boxes], 1)
    assert [len(part) for part in scores] == list(counts)
    torch.testing.assert_close(torch.cat(scores).softmax(-1), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.cat(last_rois), rois)
    torch.testing.assert_close(torch.cat(deltas), results['bbox_pred'])


def test_gradient_to_the_features_is_a_third(detector, features, proposals):
    head = detector.roi_head
    rois = bbox2roi([proposal.bboxes for proposal in proposals])
    weight = torch.randn(12, 6)
    (head._bbox_forward(0, features, rois)['cls_score'] * weight).sum().backward()
    scaled = features[0].grad.clone()
    scaled_weight = head.bbox_head[0].fc_cls.weight.grad.clone()
    features[0].grad = head.bbox_head[0].fc_cls.weight.grad = None
    pooled = head.bbox_roi_extractor[0](features[:4], rois)
    (head.bbox_head[0](pooled)[0] * weight).sum().backward()
    torch.testing.assert_close(scaled * 3, features[0].grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scaled_weight, head.bbox_head[0].fc_cls.weight.grad)


def test_losses_of_three_stages_and_one_mask_head(detector, features, proposals):
    losses = detector.roi_head.loss(features, proposals, samples(2))
    assert set(losses) == {'s0.loss_mask', *(f's{stage}.{name}' for stage in range(3)
                                             for name in ('loss_cls', 'acc', 'loss_bbox'))}
    assert sum('mask_head' in name and 'conv_logits.weight' in name for name, _ in detector.named_parameters()) == 1
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    assert all(parameter.grad is not None for parameter in detector.roi_head.parameters())


def test_losses_without_objects_are_finite(detector, features, proposals):
    losses = detector.roi_head.loss(features, proposals, samples(0))
    total = sum(value for name, value in losses.items() if 'loss' in name)
    assert torch.isfinite(total)
    total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in detector.roi_head.parameters())


@pytest.mark.parametrize('num_proposals', [0, 5])
def test_predict_with_and_without_proposals(detector, features, proposals, num_proposals):
    proposals = [proposal[:num_proposals] for proposal in proposals]
    with torch.no_grad():
        results = detector.roi_head.eval().predict(features, proposals, samples(2), rescale=True)
    for result in results:
        assert len(result.masks) == len(result.bboxes) == len(result.scores) == len(result.labels)
        assert result.masks.shape[1:] == (96, 128)


def test_a_box_outside_the_image_is_dropped(detector, features, proposals, monkeypatch):
    head = detector.roi_head.eval()
    inside, outside = proposals[0].bboxes[:2], torch.tensor([[140., 10., 160., 30.]])  # the image is 128 px wide
    boxes = torch.cat([inside, outside.clamp(max=128)])
    found = InstanceData(bboxes=boxes, scores=torch.rand(3), labels=torch.arange(3))
    monkeypatch.setattr(type(head).__mro__[1], 'predict_bbox', lambda self, *args, **kwargs: [found])
    kept, = head.predict_bbox(features, [META], proposals[:1], None)
    assert kept.labels.tolist() == [0, 1]


@pytest.mark.parametrize(('most', 'wanted'), [
    *((most, [0, 1, 2, 3, 4, 5]) for most in (None, -1, 9)), (1, [1, 2]), (2, [0, 1, 2, 4]), (3, [0, 1, 2, 3, 4])])
def test_the_best_of_each_class_are_kept(detector, features, proposals, monkeypatch, most, wanted):
    head = detector.roi_head.eval()
    found = InstanceData(bboxes=torch.tensor([[10., 10., 20., 20.]]).repeat(6, 1),
                         labels=torch.tensor([5, 5, 0, 5, 0, 5]), scores=torch.tensor([0.5, 0.9, 0.7, 0.5, 0.1, 0.2]))
    monkeypatch.setattr(type(head).__mro__[1], 'predict_bbox', lambda self, *args, **kwargs: [found])
    monkeypatch.setitem(head.test_cfg, 'max_per_class', most)
    kept, = head.predict_bbox(features, [META], proposals[:1], None)
    assert kept.scores.tolist() == found.scores[wanted].tolist()
    monkeypatch.setitem(head.test_cfg, 'maskness_thr', 0.5)  # scores change after this
    assert len(head.predict_bbox(features, [META], proposals[:1], None)[0]) == 6


def test_masks_under_autocast_are_where_the_boxes_are(detector, features, proposals):
    """tools/test.py --amp: boxes stay float32 (at 1537 px bfloat16 has steps of 8), masks have the picture's size."""
    head, maps = detector.roi_head.eval(), [level.detach() for level in features]
    meta = dict(META, img_shape=(96, 128), ori_shape=(1153, 1537), scale_factor=(128 / 1537, 96 / 1153))
    exact, narrow = [], []
    for found, enabled in ((exact, False), (narrow, True)):
        with torch.no_grad(), torch.autocast(torch.get_default_device().type, torch.bfloat16, enabled=enabled):
            boxes = [InstanceData(bboxes=proposal.bboxes.clone(), labels=torch.zeros(len(proposal.bboxes)).long(),
                                  scores=torch.ones(len(proposal.bboxes))) for proposal in proposals]
            found += head.predict_mask(tuple(maps), [meta, meta], boxes, rescale=True)
    for one, other in zip(exact, narrow, strict=True):
        assert other.bboxes.dtype == torch.float32 and torch.equal(other.bboxes, one.bboxes)
        assert other.masks.shape == (len(one.masks), 1153, 1537)
        # Random weights: probabilities are near the threshold, and so only few pixels may differ.
        assert (one.masks == other.masks).float().mean() > 0.97
