"""The whole detector against the official code, on its own weights and image: tests/data/det_small.npz.

The official run: EVA-02-L's COCO config with 64 channels, 4 blocks, windows of 4 cells, 256 px, 32-channel heads.
"""
import hashlib
import zlib

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmengine.config import Config
from mmseg.models.necks import Feature2Pyramid

import apt_dense.mm.det  # noqa: F401
from apt_dense import APTEVA02
from apt_dense.core.conversion import convert
from tests.mm.compat.operator_sets import use_operators
from tests.mm.conftest import CONFIGS

pytestmark = pytest.mark.own_device  # they compare with stored arrays of a CPU

USUAL = dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5)
LEVELS = ('p2', 'p3', 'p4', 'p5', 'p6')


@pytest.fixture(scope='module')
def golden(request) -> dict:
    return request.getfixturevalue('reference')('det_small')


@pytest.fixture(scope='module')
def weights(golden) -> dict[str, torch.Tensor]:
    """The official state dict: seeded normal numbers in half precision, and four stored biases."""
    meta = golden['weights_meta']
    state = {}
    for name, recipe in meta['recipe'].items():
        stored = golden.get(f'sd/{name}')
        if stored is None:
            random = np.random.RandomState((zlib.crc32(name.encode()) + meta['seed']) % 2**32)
            values = random.randn(*recipe['shape']) * recipe['scale'] + recipe['offset']
            values = values.astype(np.float16).astype(np.float32)
            assert hashlib.sha256(values.tobytes()).hexdigest()[:16] == recipe['sha256_16'], name
            stored = torch.from_numpy(values)
        state[name] = stored
    return state


def small_config(name: str = 'eva02_l_coco', **rcnn) -> Config:
    """A COCO config in the size of the official run; ``rcnn`` replaces its test settings."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    model = cfg.model
    model.backbone.update(embed_dims=64, depth=4, num_heads=4, window_size=4, global_block_indexes=(2,), img_size=256,
                          init_cfg=None)
    if model.backbone.num_scales > 1:
        model.backbone.update(num_scales=3, thresholds=(-1, -1))
    model.data_preprocessor.pad_size_divisor = 256
    model.neck.update(in_channels=64, out_channels=32)
    model.rpn_head.update(in_channels=32, feat_channels=32)
    model.roi_head.bbox_roi_extractor.out_channels = model.roi_head.mask_roi_extractor.out_channels = 32
    for head in model.roi_head.bbox_head:
        head.update(in_channels=32, conv_out_channels=32, fc_out_channels=64)
    model.roi_head.mask_head.update(in_channels=32, conv_out_channels=32)
    if rcnn:
        model.test_cfg.rcnn = rcnn
    return cfg


def build(cfg: Config, weights: dict) -> torch.nn.Module:
    model = MODELS.build(cfg.model).eval()
    missing, unexpected = model.load_state_dict(convert(weights).state_dict, strict=False)
    assert not unexpected
    assert all('patch_embed.conv_down' in name or 'patch_embed.zero_mlp' in name for name in missing)
    return model


def batch(model, golden) -> dict:
    """The image (3, 256, 256) as mmdetection's loader gives it, BGR, through the model's preprocessor."""
    size = (256, 256)
    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
    return model.data_preprocessor(dict(inputs=[golden['in/image_uint8_chw_rgb'].flip(0)], data_samples=[sample]))


def predict(model, data, rescale=True):
    with torch.no_grad():
        return model.predict(data['inputs'], data['data_samples'], rescale=rescale)[0].pred_instances


def assert_near(actual, expected, atol):
    torch.testing.assert_close(actual.float(), expected.float(), atol=atol, rtol=0)


@torch.no_grad()
def test_every_stage(golden, weights):
    model = build(small_config(**USUAL), weights)
    data = batch(model, golden)
    assert_near(data['inputs'][..., ::16, ::16], golden['io0/padded_input_sub16'], 1e-6)
    maps = model.extract_feat(data['inputs'])
    logits, deltas = model.rpn_head(maps)
    for level, values, scores, boxes in zip(LEVELS, maps, logits, deltas, strict=True):
        assert_near(values[..., ::3, ::3], golden[f'io0/{level}_every_third'], 1e-4)
        assert_near(scores[..., ::3, ::3], golden[f'io0/rpn_logits_{level}_every_third'], 1e-4)
        assert_near(boxes[..., ::3, ::3], golden[f'io0/rpn_deltas_{level}_every_third'], 1e-4)
    proposals = model.rpn_head.predict(maps, data['data_samples'], rescale=False)[0]
    assert_near(proposals.bboxes, golden['io0/proposals_0'], 1e-2)
    assert_near(proposals.scores, golden['io0/proposal_logits_0'].sigmoid(), 1e-5)
    rois = bbox2roi([golden['io0/proposals_0']])
    for stage in range(3):
        results = model.roi_head._bbox_forward(stage, maps, rois)
        assert_near(results['bbox_feats'][:2], golden[f'io0/stage{stage}_pooled'], 5e-4)
        assert_near(results['cls_score'][:60], golden[f'io0/stage{stage}_logits'], 1e-3)
        assert_near(results['bbox_pred'], golden[f'io0/stage{stage}_deltas'], 2e-4)
        boxes = model.roi_head.bbox_head[stage].bbox_coder.decode(rois[:, 1:], results['bbox_pred'])
        assert_near(boxes, golden[f'io0/stage{stage}_boxes'], 1e-2)
        rois = bbox2roi([boxes.clamp(0, 256)])


@pytest.mark.parametrize('operators', ['plain', 'compiled'])
def test_detections(golden, weights, operators, monkeypatch):
    use_operators(operators, monkeypatch)
    model = build(small_config(**USUAL), weights)
    found = predict(model, batch(model, golden))
    assert found.labels.tolist() == golden['io0/post0_classes'].tolist()
    assert_near(found.bboxes, golden['io0/post0_boxes'], 1e-2)
    assert_near(found.scores, golden['io0/post0_scores'], 1e-4)
    masks = np.unpackbits(golden['io0/post0_masks_packbits'].numpy(), axis=-1).astype(bool)
    assert masks.shape == tuple(golden['io0/post0_masks_shape'].tolist())
    # The official run itself has one pixel less in float64: a probability at one half.
    assert (found.masks.numpy() != masks).sum() <= 8
    assert masks.sum() > 100_000


@pytest.mark.parametrize('settings', [USUAL, {}], ids=['usual', 'published'])
def test_both_sets_of_operators_detect_the_same(golden, weights, settings, monkeypatch):
    """Where mmcv has compiled operators; the published setting has soft-NMS, of which each class is shifted there."""
    cfg = small_config(**settings)
    cfg.model.test_cfg.rpn.max_per_img = 60
    found = {}
    for operators in ('compiled', 'plain'):
        use_operators(operators, monkeypatch)
        model = build(cfg, weights)
        found[operators] = predict(model, batch(model, golden))
    plain, compiled = found['plain'], found['compiled']
    assert len(plain) == len(compiled) >= 10
    assert_near(plain.scores, compiled.scores, 1e-5)
    orders = [sorted(range(len(each)), key=lambda i, each=each: (each.labels[i].item(), -each.scores[i].item()))
              for each in (plain, compiled)]
    plain, compiled = (each[torch.tensor(order)] for each, order in zip((plain, compiled), orders, strict=True))
    assert plain.labels.equal(compiled.labels)
    assert_near(plain.scores, compiled.scores, 2e-5)
    moved = (plain.bboxes - compiled.bboxes).abs().amax(1) > 1e-3  # neighbours of nearly one score, in other places
    assert moved.sum() <= 0.01 * len(plain)
    # Probabilities at one half.
    assert (plain.masks != compiled.masks)[~moved].sum() <= max(8, 1e-5 * plain.masks.sum())


@torch.no_grad()
def test_mask_probabilities(golden, weights):
    model = build(small_config(**USUAL), weights)
    maps = model.extract_feat(batch(model, golden)['inputs'])
    logits = model.roi_head._mask_forward(0, maps, bbox2roi([golden['io0/post0_boxes']]))['mask_preds']
    labels = golden['io0/post0_classes'].long()
    assert_near(logits[torch.arange(len(labels)), labels].sigmoid(), golden['io0/det0_masks28'], 1e-3)


def test_more_than_a_hundred_candidates(golden, weights):
    changed = {key.split('sd_changed/')[1]: value for key, value in golden.items() if key.startswith('top100/sd_')}
    model = build(small_config(**USUAL), {**weights, **changed})
    found = predict(model, batch(model, golden))
    assert found.labels.tolist() == golden['top100/det0_classes'].tolist()
    assert_near(found.bboxes, golden['top100/det0_boxes'], 1e-2)
    assert_near(found.scores, golden['top100/det0_scores'], 1e-4)


@pytest.mark.parametrize(('name', 'operators'), [
    ('eva02_l_coco', 'plain'), ('apt_eva02_l_coco_full', 'plain'), ('eva02_l_coco', 'compiled')])
def test_the_published_test_setting(golden, weights, name, operators, monkeypatch):
    """The COCO configs' own test settings, but for 60 proposals; APT with thresholds of -1 is the dense model."""
    use_operators(operators, monkeypatch)
    cfg = small_config(name)
    cfg.model.test_cfg.rpn.max_per_img = 60
    model = build(cfg, weights)
    found = predict(model, batch(model, golden))
    assert len(found) == golden['softnms/num_kept'] == 1860
    scores, labels = golden['softnms/det0_scores_all'], golden['softnms/det0_classes_all']
    assert_near(found.scores, scores, 1e-5)
    # Neighbours whose scores differ by less than float32's noise in the logits may change places.
    moved = (found.labels != labels).nonzero().flatten()
    assert len(moved) < 40
    for index in moved.tolist():
        near = (scores - scores[index]).abs() < 1e-4 * scores[index]
        assert found.labels[index] in labels[near]
    still = found.labels[:200] == labels[:200]
    boxes_moved = (found.bboxes[:200] - golden['softnms/det0_boxes']).abs().amax(1) > 1e-2
    assert boxes_moved.sum() < 8 and still.sum() > 190


def test_scores_times_mask_quality(golden, weights):
    cfg = small_config()
    cfg.model.test_cfg.rpn.max_per_img = 60
    assert cfg.model.test_cfg.rcnn.maskness_thr is None
    cfg.model.test_cfg.rcnn.maskness_thr = 0.5
    model = build(cfg, weights)
    found = predict(model, batch(model, golden))
    expected = golden['maskness/det0_scores_all']
    same = found.labels == golden['softnms/det0_classes_all']
    off = (found.scores - expected).abs() > 1e-4
    assert same.sum() > 1800 and not (off & same).any()


def plain_nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    """Indexes that are kept, best first: the definition."""
    kept = []
    for index in scores.argsort(descending=True).tolist():
        one = boxes[index]
        if kept:
            others = boxes[kept]
            sides = (torch.minimum(others[:, 2:], one[2:]) - torch.maximum(others[:, :2], one[:2])).clamp(min=0)
            overlap = sides.prod(1)
            area = (others[:, 2:] - others[:, :2]).prod(1) + (one[2:] - one[:2]).prod() - overlap
            if (overlap / area > threshold).any():
                continue
        kept.append(index)
    return kept


def plain_decode(boxes, deltas, weights, height, width):
    """detectron2's box coding, then clipping to the image without its padding."""
    sides, centres = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
    deltas = deltas / torch.tensor(weights)
    centres = centres + deltas[:, :2] * sides
    sides = sides * deltas[:, 2:].clamp(max=float(np.log(1000 / 16))).exp()
    limit = torch.tensor([width, height, width, height])
    return torch.minimum(torch.cat([centres - sides / 2, centres + sides / 2], 1).clamp(min=0), limit)


@torch.no_grad()
def plain_detector(model, inputs, height, width):
    """detectron2's inference written out, on the networks of the model: boxes, scores and labels of one image."""
    maps = model.extract_feat(inputs)
    proposals, objectness = [], []
    for level, (logits, deltas) in enumerate(zip(*model.rpn_head(maps), strict=True)):
        stride, size = 4 << level, 32 << level
        rows, cols = logits.shape[-2:]
        y, x = torch.meshgrid(torch.arange(rows) * stride, torch.arange(cols) * stride, indexing='ij')
        centres = torch.stack([x, y], -1).view(-1, 1, 2)
        half = torch.tensor([[size / r**0.5, size * r**0.5] for r in (0.5, 1.0, 2.0)]) / 2
        anchors = torch.cat([centres - half, centres + half], -1).view(-1, 4)
        logits = logits[0].permute(1, 2, 0).flatten()
        deltas = deltas[0].view(3, 4, rows, cols).permute(2, 3, 0, 1).reshape(-1, 4)
        best = logits.argsort(descending=True)[:1000]
        boxes = plain_decode(anchors[best], deltas[best], (1.0, 1.0, 1.0, 1.0), height, width)
        solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, logits = boxes[solid], logits[best][solid]
        kept = plain_nms(boxes, logits, 0.7)
        proposals.append(boxes[kept])
        objectness.append(logits[kept])
    boxes = torch.cat(proposals)[torch.cat(objectness).argsort(descending=True)[:1000]]
    scores = 0
    for stage, weight in enumerate((10.0, 20.0, 30.0)):
        results = model.roi_head._bbox_forward(stage, maps, bbox2roi([boxes]))
        scores = scores + results['cls_score'].softmax(-1)[:, :-1] / 3
        boxes = plain_decode(boxes, results['bbox_pred'], (weight, weight, weight / 2, weight / 2), height, width)
    found = []
    for label in range(80):
        above = (scores[:, label] > 0.05).nonzero().flatten()
        found += [(scores[index, label].item(), label, boxes[index])
                  for index in above[plain_nms(boxes[above], scores[above, label], 0.5)]]
    found = sorted(found, key=lambda one: -one[0])[:100]
    return (torch.stack([box for _, _, box in found]), torch.tensor([score for score, _, _ in found]),
            torch.tensor([label for _, label, _ in found]))


def test_the_plain_detector_is_the_official_one(golden, weights):
    model = build(small_config(**USUAL), weights)
    boxes, scores, labels = plain_detector(model, batch(model, golden)['inputs'], 256, 256)
    assert labels.tolist() == golden['io0/post0_classes'].tolist()
    assert_near(boxes, golden['io0/post0_boxes'], 1e-2)
    assert_near(scores, golden['io0/post0_scores'], 1e-4)


@pytest.mark.parametrize(('height', 'width'), [(160, 256), (256, 144)])
def test_rectangular_image_is_padded_and_rescaled(golden, weights, height, width):
    """A crop is padded by the model to the square; boxes and masks come back in the size of the original."""
    model = build(small_config(**USUAL), weights)
    image = golden['in/image_uint8_chw_rgb'].flip(0)[:, :height, :width]
    ori_shape = (height // 2, width * 3)
    sample = DetDataSample(metainfo=dict(img_shape=(height, width), ori_shape=ori_shape, scale_factor=(1 / 3, 2.0)))
    data = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]))
    assert data['inputs'].shape[-2:] == (256, 256)
    assert data['inputs'][..., height:, :].abs().sum() + data['inputs'][..., width:].abs().sum() == 0
    boxes, scores, labels = plain_detector(model, data['inputs'], height, width)
    found = predict(model, data)
    assert len(found) > 10 and found.labels.tolist() == labels.tolist()
    assert_near(found.scores, scores, 1e-4)
    assert_near(found.bboxes, boxes * torch.tensor([3, 0.5, 3, 0.5]), 1e-2)
    assert found.masks.shape[1:] == ori_shape
    # A mask lies in its box, and fills some of it.
    for mask, (x1, y1, x2, y2) in zip(found.masks, found.bboxes.tolist(), strict=True):
        rows, cols = mask.nonzero(as_tuple=True)
        if len(rows):
            assert rows.min() >= y1 - 1 and rows.max() <= y2 + 1 and cols.min() >= x1 - 1 and cols.max() <= x2 + 1
    assert found.masks.any(-1).any(-1).sum() > len(found) // 2


@torch.no_grad()
def test_apt_that_merges_starts_as_the_resizing_baseline(golden, weights):
    """With the zero start, the added parameters change nothing before training."""
    results = {}
    for branch in ('zero', 'none'):
        cfg = small_config('apt_eva02_l_coco_full')
        cfg.model.backbone.update(scorer='entropy', thresholds=(6.0, 5.5), detail_branch=branch)
        model = build(cfg, weights)
        results[branch] = model.extract_feat(batch(model, golden)['inputs'])
        assert model.backbone.last_layout.num_tokens < 0.9 * model.backbone.last_layout.num_cells
    for zero, none in zip(results['zero'], results['none'], strict=True):
        assert torch.equal(zero, none)


@torch.no_grad()
def test_segmentation_backbone_and_neck(reference):
    """Converted into APTEVA02 with a class token and mmseg's Feature2Pyramid: every stored output."""
    golden = reference('eva02_seg_backbone')
    state = {key[3:]: value for key, value in golden.items() if key.startswith('sd/')}
    state['backbone.fpn1.1.num_batches_tracked'] = torch.tensor(0)  # not a float, so not among the reference's weights
    converted = convert(state).state_dict
    backbone = APTEVA02(img_size=128, embed_dims=64, depth=4, num_heads=4, window_size=0, global_block_indexes=(),
                        out_indices=(0, 1, 2, 3), with_cls_token=True, pretrain_img_size=128).eval()
    neck = Feature2Pyramid(embed_dim=64, rescales=[4, 2, 1, 0.5], norm_cfg=dict(type='BN')).eval()
    for name, module in (('backbone.', backbone), ('neck.', neck)):
        module.load_state_dict({key.removeprefix(name): value for key, value in converted.items()
                                if key.startswith(name)})
    maps = backbone(golden['in/x'])
    for index, values in enumerate(maps):
        assert_near(values.flatten(2).transpose(1, 2), golden[f'out/block{index}'][:, 1:], 1e-4)
    for index, values in enumerate(neck(maps), start=1):
        key = f'out/fpn{index}'
        if f'{key}_every_third' in golden:
            assert_near(values[..., ::3, ::3], golden[f'{key}_every_third'], 1e-4)
        else:  # fpn3 is the third map itself
            assert_near(values, golden[key] if index != 3 else maps[2], 1e-4)
