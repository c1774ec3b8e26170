"""apt_dense for mmdetection: importing this module registers its detector, RoI head, dataset and transforms."""
from apt_dense.extras import from_extra
from apt_dense.mm import compat
from apt_dense.mm.data import load_picture
from apt_dense.mm.data.checked_coco import CheckedCocoDataset
from apt_dense.mm.data.transforms import ResizeToAtLeastOnePixel
from apt_dense.mm.models.cascade_rcnn import APTCascadeRCNN, EVA02CascadeRoIHead

with from_extra('mm'):
    from mmdet.registry import TRANSFORMS
    from mmdet.visualization import DetLocalVisualizer

__all__ = ['APTCascadeRCNN', 'CheckedCocoDataset', 'EVA02CascadeRoIHead', 'ResizeToAtLeastOnePixel']

load_picture.register(TRANSFORMS)
compat.draw_on_any_picture(DetLocalVisualizer)
compat.keep_rois_in_float32()
compat.keep_anchors_in_float32()
compat.suppress_all_classes_at_once()
compat.evaluate_coco_faster()
compat.encode_masks_faster()
