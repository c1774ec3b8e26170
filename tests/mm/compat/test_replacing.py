"""Each fix is applied once."""
import importlib
import sys

import torch
from mmcv.ops import RoIAlign
from mmcv.ops.nms import NMSop, SoftNMSop
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.layers import bbox_nms
from mmdet.models.roi_heads.bbox_heads import bbox_head
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.visualization import Visualizer

from apt_dense.mm import compat


def test_fixes_are_applied_once(extractor):
    importlib.import_module('apt_dense.mm.det')  # calls those that need mmdet

    def state():
        return (NMSop.forward, SoftNMSop.forward, RoIAlign.forward, Visualizer.set_image, SingleRoIExtractor.forward,
                BaseDenseHead.predict_by_feat, bbox_nms.multiclass_nms, bbox_head.multiclass_nms,
                sys.modules['mmcv._ext'], set(torch.serialization.get_safe_globals()))

    compat.apply()
    before = state()
    compat.apply()
    compat.keep_rois_in_float32()
    compat.keep_anchors_in_float32()
    compat.suppress_all_classes_at_once()
    assert state() == before
    assert all(hasattr(function, 'replaced_by_apt_dense') for function in before[:-2])
