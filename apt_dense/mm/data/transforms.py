"""Data transforms that mmdetection does not have, and some of its own that are mended."""
import mmcv
import numpy as np
from mmengine.registry import TRANSFORMS

from apt_dense.extras import from_extra

with from_extra('mm'):
    from mmdet.datasets import transforms
    from mmdet.datasets.transforms import Resize
    from mmdet.registry import TRANSFORMS as MMDET_TRANSFORMS
    from mmdet.structures.mask import BitmapMasks, PolygonMasks


@TRANSFORMS.register_module()
class ResizeToAtLeastOnePixel(Resize):
    """``mmdet.Resize`` that never makes a side of 0 pixels.

    With ``keep_ratio`` a strip of 10000 x 10 px, scaled to a longest side of 256, would be 256 x 0 px, and OpenCV
    fails.  Here its short side becomes 1 px.
    """

    def transform(self, results: dict) -> dict:
        """See ``mmdet.Resize``."""
        if self.keep_ratio and self.scale is not None:
            height, width = results['img'].shape[:2]
            size = mmcv.rescale_size((width, height), self.scale)
            if min(size) < 1:
                exact = Resize(scale=tuple(max(side, 1) for side in size), keep_ratio=False, backend=self.backend,
                               clip_object_border=self.clip_object_border, interpolation=self.interpolation)
                return exact.transform(results)
        return super().transform(results)


@MMDET_TRANSFORMS.register_module(force=True)
class LoadAnnotations(transforms.LoadAnnotations):
    """``mmdet.LoadAnnotations`` whose ``poly2mask=False`` loses no object.

    Polygons are kept where all of an image's masks are polygons (crowds, which are ignored, do not count).  mmdetection
    silently ignores an object with another mask, an RLE: here such an image gets bitmaps.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._keeps_polygons = not self.poly2mask

    def _load_masks(self, results: dict) -> None:
        self.poly2mask = not self._keeps_polygons or any(
            isinstance(instance['mask'], dict) and not instance['ignore_flag']
            for instance in results.get('instances', []))
        super()._load_masks(results)


@MMDET_TRANSFORMS.register_module(force=True)
class CopyPaste(transforms.CopyPaste):
    """``mmdet.CopyPaste`` whose images keep their type; mmdetection's become 64-bit integers, which OpenCV refuses.

    It pastes pixels, so masks that are polygons become bitmaps.
    """

    def transform(self, results: dict) -> dict:
        """See ``mmdet.CopyPaste``."""
        dtype = results['img'].dtype
        for sample in (results, *results.get('mix_results', ())):
            masks = sample.get('gt_masks')
            if isinstance(masks, PolygonMasks):  # (its to_bitmap gives bool, which OpenCV does not resize)
                sample['gt_masks'] = BitmapMasks(masks.to_ndarray().astype(np.uint8), masks.height, masks.width)
        results = super().transform(results)
        results['img'] = results['img'].astype(dtype, copy=False)
        return results
