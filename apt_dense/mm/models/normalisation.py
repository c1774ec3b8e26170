"""The image is normalised by the data preprocessor and restored by the patch chooser: both must mean the same."""
import logging

import torch
from mmengine.logging import print_log
from torch import nn

from apt_dense.core.chooser import PatchChooser
from apt_dense.mm.errors import DataError


def check_normalisation(preprocessor: nn.Module, chooser: PatchChooser) -> None:
    """Check that the chooser undoes what a data preprocessor of mmdetection or mmsegmentation does.

    With another mean or std, or with channels in the order of OpenCV, it would see another image and choose other
    patches, without any sign of it.  A preprocessor without mean and std is let pass with a warning, because a pipeline
    may normalise by itself.

    Raises:
        DataError: naming both settings.
    """
    if chooser.num_scales == 1 or getattr(preprocessor, 'mean', torch.empty(0)).is_meta:
        return  # nothing is scored, or nothing will ever run
    if not getattr(preprocessor, '_enable_normalize', False):
        print_log('model.data_preprocessor has no mean and std: the patches are right only if the pipeline normalises '
                  f'RGB images by mean {chooser.img_mean} and std {chooser.img_std} (model.backbone.img_mean, img_std)',
                  logger='current', level=logging.WARNING)
        return
    found = {'mean': preprocessor.mean, 'std': preprocessor.std}
    for name, wanted in (('mean', chooser.img_mean), ('std', chooser.img_std)):
        values = found[name].flatten().float().tolist()  # of whole numbers, too
        if len(values) == 1:
            values *= 3
        if not torch.allclose(torch.tensor(values), torch.tensor(wanted), rtol=1e-5, atol=1e-4):
            raise DataError(f'model.data_preprocessor.{name} is {tuple(round(value, 4) for value in values)} and '
                             f'model.backbone.img_{name} is {wanted}: patches are scored on the image that the '
                             f'backbone restores with its own. Set model.backbone.img_{name} to the same')
    channels = getattr(preprocessor, '_channel_conversion', getattr(preprocessor, 'channel_conversion', True))
    if not channels:
        raise DataError('model.data_preprocessor.bgr_to_rgb=False: images are loaded as BGR, and the backbone scores '
                         '(and was pre-trained on) RGB. Set model.data_preprocessor.bgr_to_rgb=True')


def check_model_normalisation(model: nn.Module) -> None:
    """``check_normalisation`` of a detector or segmentor, if its backbone chooses patches."""
    chooser = getattr(getattr(model, 'backbone', None), 'chooser', None)
    if chooser is not None:
        check_normalisation(model.data_preprocessor, chooser)
