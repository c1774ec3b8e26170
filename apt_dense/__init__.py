"""Adaptive Patch Transformers for dense prediction: APT-EVA-02 for mmdetection and mmsegmentation.

Importing this package loads torch only.  ``apt_dense.mm`` registers the models with OpenMMLab's packages; ``load``
opens one of them for prediction.
"""
from typing import Any

from apt_dense.core.chooser import PatchChooser
from apt_dense.core.dinov3 import APTDINOv3
from apt_dense.core.eva02 import APTEVA02
from apt_dense.core.importance import patch_entropy, patch_laplacian, patch_upsampling_error
from apt_dense.core.layout import TokenLayout
from apt_dense.core.plain_vit import APTViT
from apt_dense.core.pyramid import SimpleFeaturePyramid
from apt_dense.core.quadtree import select_scales
from apt_dense.core.sam3 import APTSAM3
from apt_dense.core.vit import PackedViT

__version__ = '0.1.0'

__all__ = [
    'APTDINOv3', 'APTEVA02', 'APTSAM3', 'APTViT', 'PackedViT', 'PatchChooser', 'SimpleFeaturePyramid', 'TokenLayout',
    'load', 'patch_entropy', 'patch_laplacian', 'patch_upsampling_error', 'select_scales'
]


def __getattr__(name: str) -> Any:
    if name == 'load':  # it needs OpenMMLab, of which nothing else here knows
        from apt_dense.mm.inference.opening import load
        return load
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
