"""torchvision's transforms in a pipeline for classification, and what the model is given."""
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement
from PIL import Image

from apt_dense.mm.errors import DataError
from apt_dense.python_torchvision import import_torchvision

v2 = import_torchvision('torchvision.transforms.v2')
ON_TENSORS = (v2.RandomErasing,)  # the others take PIL images, on which published classifiers are evaluated


class TorchVisionTransform(BaseTransform):
    """A transform of ``torchvision.transforms.v2``, on the picture alone; its arguments are torchvision's.

    Each is registered under its name there: ``dict(type='torchvision/RandomResizedCrop', size=224)``.
    ``interpolation`` is a name, such as 'bicubic'.  Normalisation is the data preprocessor's.

    Raises:
        DataError: for arguments that torchvision does not take.
    """
    kind: type

    def __init__(self, **arguments: Any):
        if 'interpolation' in arguments:
            arguments['interpolation'] = _interpolation(arguments['interpolation'])
        try:
            self.step = self.kind(**arguments)
        except (TypeError, ValueError) as error:
            raise DataError(f'torchvision/{self.kind.__name__} with {arguments}: {error}') from error

    def transform(self, results: dict) -> dict:
        """Change ``img``: (H, W, 3) uint8, BGR, before and after."""
        image = np.ascontiguousarray(results['img'][..., ::-1])
        if isinstance(self.step, ON_TENSORS):
            image = self.step(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        else:
            image = np.asarray(self.step(Image.fromarray(image)))
        results['img'] = np.ascontiguousarray(image[..., ::-1])
        results['img_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self) -> str:
        return repr(self.step)


def _interpolation(name: str) -> Any:
    names = [mode.value for mode in v2.InterpolationMode]
    if name not in names:
        raise DataError(f'interpolation={name!r}: choose one of {names}')
    return v2.InterpolationMode(name)


def register_all() -> None:
    """Register torchvision's transforms of one picture that leave one."""
    leave_others = ('Compose', 'ToImage', 'ToPILImage', 'PILToTensor', 'ToTensor', 'ToDtype', 'ConvertImageDtype',
                    'Normalize', 'FiveCrop', 'TenCrop', 'CutMix', 'MixUp', 'LinearTransformation', 'Lambda')
    for name in sorted(set(vars(v2)) - set(leave_others)):
        kind = getattr(v2, name)
        if isinstance(kind, type) and issubclass(kind, v2.Transform) and kind is not v2.Transform:
            step = type(name, (TorchVisionTransform,), dict(kind=kind, __doc__=f'See torchvision.transforms.v2.{name}.',
                                                            __module__=__name__))
            TRANSFORMS.register_module(name=f'torchvision/{name}', module=step, force=True)


register_all()


@TRANSFORMS.register_module()
class PackClassInputs(BaseTransform):
    """Pack a picture for the data preprocessor: ``inputs`` (3, H, W) uint8, BGR, and ``data_samples``."""

    def transform(self, results: dict) -> dict:
        """``data_samples`` is a ``BaseDataElement`` with gt_label, where there is one, and img_path, ori_shape."""
        sample = BaseDataElement(metainfo={name: results[name] for name in ('img_path', 'ori_shape', 'img_shape',
                                                                            'sample_idx') if name in results})
        if 'gt_label' in results:
            sample.gt_label = results['gt_label']
        image = torch.from_numpy(np.ascontiguousarray(results['img'].transpose(2, 0, 1)))
        return dict(inputs=image, data_samples=sample)
