"""apt_dense for classification: importing this module registers its classifier, dataset, transforms and metric.

It stands on mmengine and torchvision; ``default_scope='mmengine'``.
"""
from mmengine.registry import TRANSFORMS

from apt_dense.mm.data import load_picture
from apt_dense.mm.data.accuracy import DumpLogits, TopKAccuracy
from apt_dense.mm.data.class_folders import ClassFolderDataset
from apt_dense.mm.data.class_transforms import PackClassInputs, TorchVisionTransform
from apt_dense.mm.models.class_preprocessor import ClassDataPreprocessor
from apt_dense.mm.models.classifier import APTClassifier

__all__ = ['APTClassifier', 'ClassDataPreprocessor', 'ClassFolderDataset', 'DumpLogits', 'PackClassInputs',
           'TopKAccuracy', 'TorchVisionTransform']

load_picture.register(TRANSFORMS)
