"""The scores of single images, by hand and by the metrics of the whole dataset."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData

import apt_dense
from apt_dense.mm.errors import DataError
from apt_dense.mm.inference.evaluation import Evaluation
from apt_dense.mm.inference.image_scores import image_scores


def predict_by(monkeypatch, model, predict):
    """Let the model predict what ``predict`` makes of each sample, its truth in it."""
    whole = model.module.test_step

    def test_step(batch):
        samples = whole(batch)
        for sample in samples:
            predict(sample)
        return samples
    monkeypatch.setattr(model.module, 'test_step', test_step)


def truth_of(sample):
    """The true boxes, in pixels of the picture, and their labels."""
    truth = sample.gt_instances
    return truth.bboxes if torch.is_tensor(truth.bboxes) else truth.bboxes.tensor, truth.labels


def test_f1_of_boxes(checkpoints, monkeypatch):
    """One box of two found in the first image, with a wrong one and one of too low a score; all in the second."""
    model = apt_dense.load(checkpoints['det'], as_published=True)
    model.cfg.test_evaluator.metric = 'bbox'
    evaluation = Evaluation(model.cfg)
    seen = []

    def predict(sample):
        boxes, labels = truth_of(sample)
        scores = torch.tensor([0.9] * len(boxes))
        if not seen:
            boxes = torch.cat([boxes[:1], boxes[:1] + 60, boxes[1:2]])
            labels, scores = labels[[0, 0, 1]], torch.tensor([0.9, 0.8, 0.2])
        seen.append(sample.img_id)
        sample.pred_instances = InstanceData(bboxes=boxes, labels=labels, scores=scores)

    predict_by(monkeypatch, model, predict)
    evaluation.evaluate(model)
    assert image_scores(evaluation) == pytest.approx([2 * 1 / (2 + 2), 1.0])
    assert image_scores(evaluation, min_score=0.1)[0] == pytest.approx(2 * 2 / (3 + 2))


def test_images_without_objects_or_boxes(checkpoints, monkeypatch, tmp_path):
    model = apt_dense.load(checkpoints['det'], as_published=True)
    content = json.loads(Path(model.cfg.test_evaluator.ann_file).read_text())
    content['annotations'] = [entry for entry in content['annotations'] if entry['image_id'] != 1]
    (tmp_path / 'fewer.json').write_text(json.dumps(content))
    model.cfg.test_evaluator.ann_file = model.cfg.test_dataloader.dataset.ann_file = str(tmp_path / 'fewer.json')
    evaluation = Evaluation(model.cfg)
    predict_by(monkeypatch, model, lambda sample: setattr(
        sample, 'pred_instances', InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=int),
                                               scores=torch.zeros(0), masks=np.zeros((0, *sample.ori_shape), bool))))
    evaluation.evaluate(model)
    assert image_scores(evaluation) == [1.0, 0.0]


def test_mean_iou(checkpoints, monkeypatch):
    """The truth itself, but in the first image all background where objects are."""
    model = apt_dense.load(checkpoints['seg'])
    evaluation = Evaluation(model.cfg)
    wanted = []

    def predict(sample):
        truth = sample.gt_sem_seg.data.clone()
        labels = truth if wanted else torch.zeros_like(truth)
        counted = truth != 255
        ious = [((labels == one) & (truth == one) & counted).sum() /
                (((labels == one) | (truth == one)) & counted).sum() for one in truth[counted].unique()]
        wanted.append(float(torch.stack(ious).mean()))
        sample.pred_sem_seg = PixelData(data=torch.where(counted, labels, 0))

    predict_by(monkeypatch, model, predict)
    evaluation.evaluate(model)
    assert image_scores(evaluation) == pytest.approx(wanted) and wanted[1] == 1 > wanted[0] > 0


def test_another_evaluator(checkpoints):
    model = apt_dense.load(checkpoints['det'])
    model.cfg.test_evaluator = dict(type='mmdet.DumpDetResults', out_file_path='out.pkl')
    with pytest.raises(DataError, match='test_evaluator is DumpDetResults: wanted CocoMetric with bbox or segm'):
        image_scores(Evaluation(model.cfg))
