"""Pictures and labels of a batch for a classifier: normalised, and mixed in training."""
from collections.abc import Callable
from functools import cached_property

from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS

from apt_dense.mm.data.accuracy import labels_of
from apt_dense.mm.errors import DataError
from apt_dense.python_torchvision import import_torchvision


@MODELS.register_module()
class ClassDataPreprocessor(ImgDataPreprocessor):
    """mmengine's ``ImgDataPreprocessor`` that also gives the labels of a training batch as ``targets``.

    Args:
        num_classes: of the model.
        mixup_alpha, cutmix_alpha: mix the pictures and labels of a training batch by torchvision's MixUp or CutMix with
            this alpha; 0 for never.  Where both are given, one of them is drawn for each batch.
        mean, std, bgr_to_rgb, ...: of ``ImgDataPreprocessor``.

    Raises:
        DataError: for a negative alpha, or a label that is no class.
    """

    def __init__(self, *args, num_classes: int, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_classes = num_classes
        for name, alpha in (('mixup_alpha', mixup_alpha), ('cutmix_alpha', cutmix_alpha)):
            if not alpha >= 0:
                raise DataError(f'{name}={alpha} must be 0, for never, or more')
        self.alphas = {'MixUp': mixup_alpha, 'CutMix': cutmix_alpha}

    @cached_property
    def mix(self) -> Callable | None:
        """torchvision's transform of pictures and labels; its distributions are no tensors of the meta device."""
        v2 = import_torchvision('torchvision.transforms.v2')
        kinds = [getattr(v2, name)(alpha=alpha, num_classes=self.num_classes)
                 for name, alpha in self.alphas.items() if alpha]
        return v2.RandomChoice(kinds) if kinds else None

    def forward(self, data: dict, training: bool = False) -> dict:
        """Preprocess a batch.

        Args:
            data: ``inputs``, a list of (3, H, W), and ``data_samples``, a list with ``gt_label``.
            training: give ``targets`` too: (B,) int64, or (B, classes) where labels are mixed.
        """
        data = super().forward(data, training)
        if training:
            labels = labels_of(data['data_samples'], self.num_classes)
            data['targets'] = labels.to(data['inputs'].device, non_blocking=True)
            if self.mix is not None:
                data['inputs'], data['targets'] = self.mix(data['inputs'], data['targets'])
        return data
