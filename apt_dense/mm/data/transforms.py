"""Data transforms that mmdetection does not have, and one of its own that is mended."""
import mmcv
from mmengine.registry import TRANSFORMS

from apt_dense.extras import from_extra

with from_extra('mm'):
    from mmdet.datasets import transforms
    from mmdet.datasets.transforms import Resize
    from mmdet.registry import TRANSFORMS as MMDET_TRANSFORMS


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
class CopyPaste(transforms.CopyPaste):
    """``mmdet.CopyPaste`` whose images keep their type; mmdetection's become 64-bit integers, which OpenCV refuses."""

    def transform(self, results: dict) -> dict:
        """See ``mmdet.CopyPaste``."""
        dtype = results['img'].dtype
        results = super().transform(results)
        results['img'] = results['img'].astype(dtype, copy=False)
        return results
