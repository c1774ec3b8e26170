"""Train towards the feature maps of a dense model."""
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from apt_dense.core.checkpoint_files import load_official
from apt_dense.mm.errors import DataError, LaunchError
from apt_dense.mm.models.unloaded import unloaded

DENSE = dict(num_scales=1, thresholds=(), max_tokens=None, init_cfg=None, with_cp=False, reduction=None)


class DistillMixin(nn.Module):
    """Mixin before a detector or segmentor class: adds the argument ``distill``.

    With it, training has one more loss, ``loss_distill``: the mean squared difference between the backbone's feature
    maps and those of the dense model, over the variance of the latter; mean over the maps.  Labels have no part in it.
    Each step costs a forward pass of the dense backbone more.  Testing is as without.

    Args:
        distill: ``dict(checkpoint=FILE, weight=1.0)``: a checkpoint of the dense twin, and the loss's weight.  The
            dense backbone is no part of the model: it is in no checkpoint and has no gradients.

    Raises:
        LaunchError: for other entries.
        DataError: when the weights are initialised, before training, if the file has no such backbone.
    """

    def __init__(self, *args, distill: Mapping[str, Any] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if distill is not None and not ('checkpoint' in distill and set(distill) <= {'checkpoint', 'weight'}):
            raise LaunchError(f"distill={dict(distill)} wants 'checkpoint', the file of the dense twin, and may have "
                              "'weight', 1.0 by default")
        self.distill = distill
        self._backbone_config = kwargs.get('backbone')
        self._teacher: list[nn.Module] = []  # in a list, so that it is no submodule

    def init_weights(self) -> None:
        """As the model does, and read the dense backbone."""
        super().init_weights()
        if self.distill is not None:
            self._teacher = [read_teacher(self._backbone_config, self.distill['checkpoint'])]

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """The model's losses, and 'loss_distill'."""
        if self.distill is None:
            return super().loss(inputs, data_samples)
        passes = []
        handle = self.backbone.register_forward_hook(lambda _, given, maps: passes.append((*given, maps)))
        try:
            losses = super().loss(inputs, data_samples)
        finally:
            handle.remove()
        (images, maps), teacher = passes[0], self._teacher[0].to(inputs.device)
        with torch.no_grad():
            targets = teacher(images)
        differences = [(own.float() - target.float()).square().mean() / target.float().var()
                       for own, target in zip(maps, targets, strict=True)]
        losses['loss_distill'] = self.distill.get('weight', 1.0) * torch.stack(differences).mean()
        return losses


def read_teacher(backbone: Mapping[str, Any], path: str) -> nn.Module:
    """The dense twin of a backbone's config, in eval mode and without gradients, with the weights of a checkpoint.

    Raises:
        DataError: if the file is none, or lacks parameters of the backbone.
    """
    teacher = MODELS.build({**backbone, **DENSE})
    try:
        state = load_official(path, 'state_dict')[0]
    except ValueError as error:
        raise DataError(f'distill: {error}') from error
    state = {name.removeprefix('backbone.'): value for name, value in state.items() if name.startswith('backbone.')}
    missing = unloaded(teacher, state)
    if missing:
        raise DataError(f'distill: {path} lacks {len(missing)} parameters of the dense backbone, or has them in '
                        f"another shape: {', '.join(missing[:5])}. Give a checkpoint of this config's dense twin")
    teacher.load_state_dict(state, strict=False)  # what APT adds has no place in it
    return teacher.eval().requires_grad_(False)
