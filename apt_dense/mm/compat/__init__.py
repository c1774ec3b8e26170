"""Fixes that the OpenMMLab packages need on current torch, numpy and matplotlib, and on machines without a GPU.

Each fix is one function: why it is there, and when it can be deleted.  Importing this package applies those that only
repair what would fail or be wrong otherwise.  Called by name are ``keep_rois_in_float32``, ``keep_anchors_in_float32``,
``suppress_all_classes_at_once``, ``evaluate_coco_faster`` and ``encode_masks_faster``, because they import mmdet,
``draw_on_any_picture``, which takes a class of one of the packages, and ``setup_cpu_ddp`` and
``filter_library_warnings``, because they are a program's business.  A fix looks at what it finds, never at a
distribution's name or version, so that the onedl-* forks work too.  Applying a fix twice changes nothing.

The package must be imported before a checkpoint is loaded, and with mmcv-lite before mmdet or ``mmcv.ops``: put
``apt_dense.mm`` into a config's ``custom_imports``.
"""
from apt_dense.mm.compat.checkpoints import allow_mmengine_checkpoints, load_checkpoints_safely
from apt_dense.mm.compat.coco_evaluation import encode_masks_faster, evaluate_coco_faster
from apt_dense.mm.compat.configs import know_own_configs
from apt_dense.mm.compat.cpu import BF16OptimWrapper, setup_cpu_ddp
from apt_dense.mm.compat.drawing import draw_on_any_picture, keep_drawing_limits, write_whole_pictures
from apt_dense.mm.compat.logs import filter_library_warnings, log_core_to
from apt_dense.mm.compat.operator_set import describe_operators, plain_operators, provide_operators
from apt_dense.mm.compat.operators import (
    keep_anchors_in_float32,
    keep_rois_in_float32,
    repair_roi_align,
    run_nms_in_float32,
    suppress_all_classes_at_once,
)

__all__ = [
    'BF16OptimWrapper', 'describe_operators', 'draw_on_any_picture', 'encode_masks_faster', 'evaluate_coco_faster',
    'filter_library_warnings', 'keep_anchors_in_float32', 'keep_rois_in_float32', 'log_core_to', 'plain_operators',
    'setup_cpu_ddp', 'suppress_all_classes_at_once'
]


def apply() -> None:
    """Apply every fix that is not called by name.  Importing the package does it; doing it again changes nothing."""
    allow_mmengine_checkpoints()
    load_checkpoints_safely()
    provide_operators()
    run_nms_in_float32()
    repair_roi_align()
    keep_drawing_limits()
    write_whole_pictures()
    know_own_configs()


apply()
