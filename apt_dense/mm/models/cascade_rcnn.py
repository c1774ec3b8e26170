"""EVA-02's Cascade Mask R-CNN on mmdetection's classes: what differs from mmdetection, and nothing else."""
import torch
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

from apt_dense.extras import from_extra
from apt_dense.mm.models.distill import DistillMixin
from apt_dense.mm.models.freeze import FreezeMixin
from apt_dense.mm.models.normalisation import check_model_normalisation

with from_extra('mm'):
    from mmdet.models.detectors import CascadeRCNN
    from mmdet.models.roi_heads import CascadeRoIHead
    from mmdet.models.task_modules.samplers import SamplingResult
    from mmdet.models.utils import empty_instances
    from mmdet.registry import MODELS as MMDET_MODELS
    from mmdet.structures.bbox import bbox2roi
    from mmdet.utils import InstanceList


@MODELS.register_module()
class APTCascadeRCNN(FreezeMixin, DistillMixin, CascadeRCNN):
    """``mmdet.CascadeRCNN`` with ``trainable`` (see ``FreezeMixin``) and ``distill`` (see ``DistillMixin``).

    Raises:
        ValueError: if the data preprocessor normalises otherwise than the backbone assumes.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_model_normalisation(self)


@MODELS.register_module()
class EVA02CascadeRoIHead(CascadeRoIHead):
    """Cascade RoI head as in detectron2, which EVA-02's detectors were trained and are evaluated with.

    It differs from ``mmdet.CascadeRoIHead`` in four points:

    * one mask head, trained on the first stage's samples (mmdetection has one for each stage);
    * scores are the mean of the stages' probabilities (mmdetection averages the logits);
    * the gradient that a box head sends to the features is divided by the number of stages (mmdetection weights the
      stages' losses, which also slows the heads themselves);
    * a detection without area, outside the image before clipping, is dropped.
    """

    def init_mask_head(self, mask_roi_extractor: dict, mask_head: dict) -> None:
        """Build one mask head."""
        self.mask_roi_extractor = MMDET_MODELS.build(mask_roi_extractor)
        self.mask_head = MMDET_MODELS.build(mask_head)
        self.share_roi_extractor = False

    def _bbox_forward(self, stage: int, x: tuple[Tensor], rois: Tensor) -> dict:
        extractor, head = self.bbox_roi_extractor[stage], self.bbox_head[stage]
        feats = extractor(x[:extractor.num_inputs], rois)
        if feats.requires_grad:
            feats.register_hook(lambda gradient: gradient / self.num_stages)
        cls_score, bbox_pred = head(feats)
        return {'cls_score': cls_score, 'bbox_pred': bbox_pred, 'bbox_feats': feats}

    def _mask_forward(self, stage: int, x: tuple[Tensor], rois: Tensor) -> dict:
        feats = self.mask_roi_extractor(x[:self.mask_roi_extractor.num_inputs], rois)
        return {'mask_preds': self.mask_head(feats)}

    def mask_loss(self, stage: int, x: tuple[Tensor], sampling_results: list[SamplingResult],
                  batch_gt_instances: InstanceList) -> dict:
        """Loss of the mask head on the first stage's positive samples; none in later stages."""
        if stage > 0:
            return {'loss_mask': {}}
        results = self._mask_forward(stage, x, bbox2roi([result.pos_priors for result in sampling_results]))
        return results | self.mask_head.loss_and_target(results['mask_preds'], sampling_results, batch_gt_instances,
                                                        self.train_cfg[stage])

    def predict_bbox(self, *args, **kwargs) -> InstanceList:
        """Detect boxes; those that clipping to the image has left empty are dropped, as detectron2 does.

        With ``test_cfg.max_per_class`` only so many of each class and image are kept, the best; -1, as of max_per_img,
        keeps all, and so does ``maskness_thr``, which changes the scores afterwards.  (COCO's evaluation looks at 100;
        an untrained detector finds 80 000, whose masks fill any memory.)
        """
        found = super().predict_bbox(*args, **kwargs)
        found = [results[(results.bboxes[:, 2:] > results.bboxes[:, :2]).all(1)] for results in found]
        most = self.test_cfg.get('max_per_class') or -1
        if most <= 0 or self.test_cfg.get('maskness_thr') is not None:
            return found
        return [results[_best_of_each(results, most)] for results in found]

    def predict_mask(self, x: tuple[Tensor], batch_img_metas: list[dict], results_list: InstanceList,
                     rescale: bool = False) -> InstanceList:
        """Add the masks of the detected boxes.

        With ``test_cfg.maskness_thr`` a score is multiplied by the mask's quality: the mean probability of the mask's
        pixels above that threshold.  The order of the detections stays.  (EVA-02's setting for its mask AP.)
        """
        rois = bbox2roi([results.bboxes for results in results_list])
        if len(rois) == 0:
            return empty_instances(batch_img_metas, rois.device, task_type='mask', instance_results=results_list,
                                   mask_thr_binary=self.test_cfg.mask_thr_binary)
        mask_preds = self._mask_forward(0, x, rois)['mask_preds'].split([len(results) for results in results_list])
        threshold = self.test_cfg.get('maskness_thr')
        if threshold is not None:
            for logits, results in zip(mask_preds, results_list, strict=True):
                probability = logits[torch.arange(len(results), device=logits.device), results.labels].float().sigmoid()
                above = probability > threshold
                results.scores = results.scores * ((probability * above).sum((1, 2)) / above.sum((1, 2)).clamp(min=1))
        return self.mask_head.predict_by_feat(mask_preds, results_list, batch_img_metas, self.test_cfg, rescale)

    def _refine_roi(self, x: tuple[Tensor], rois: Tensor, batch_img_metas: list[dict],
                    num_proposals_per_img: tuple[int, ...]) -> tuple:
        """Run all stages: the last stage's RoIs and box deltas, and the logarithms of the mean probabilities."""
        probabilities = []
        for stage in range(self.num_stages):
            results = self._bbox_forward(stage, x, rois)
            probabilities.append(results['cls_score'].softmax(-1))
            deltas = results['bbox_pred'].split(num_proposals_per_img)
            rois_per_img = rois.split(num_proposals_per_img)
            if stage < self.num_stages - 1:
                # Class-agnostic: the label has no influence on the box.
                boxes = [self.bbox_head[stage].regress_by_class(roi[:, 1:], roi.new_zeros(len(roi)), delta, meta)
                         for roi, delta, meta in zip(rois_per_img, deltas, batch_img_metas, strict=True)]
                rois = bbox2roi(boxes)
        # The head takes the softmax of what it gets: softmax(log p) = p.
        mean = torch.stack(probabilities).mean(0).log()
        return rois_per_img, mean.split(num_proposals_per_img), deltas


def _best_of_each(results: InstanceData, most: int) -> Tensor:
    """(N,) bool: the ``most`` detections of each class with the highest scores; of equal ones the first."""
    order = results.scores.argsort(descending=True, stable=True)
    order = order[results.labels[order].argsort(stable=True)]  # by class, the best of each first
    classes = results.labels[order]
    kept = torch.ones_like(classes, dtype=torch.bool)
    kept[order[most:]] = classes[most:] != classes[:-most] if most < len(order) else True
    return kept
