"""Train a few parameters of a model and freeze everything else."""
import logging
from collections.abc import Sequence

from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from apt_dense.mm.errors import LaunchError


class FreezeMixin(nn.Module):
    """Mixin before a detector or segmentor class: adds the argument ``trainable``.

    The model is frozen as soon as it is built, not by a hook: data-parallel wrappers and optimisers look at
    ``requires_grad`` before any hook runs.

    Args:
        trainable: prefixes of the parameter names to train, such as 'backbone.patch_embed.conv_down'.  All other
            parameters get ``requires_grad = False``; modules without a trained parameter stay in eval mode, so that
            their statistics do not move and dropout and drop path are off.  None trains everything.

    A prefix that matches no parameter, or none at all, leaves a model that can only be tested: nothing is frozen, a
    warning says so, and ``train()`` raises.

    Raises:
        LaunchError: by ``train()``, if a prefix matches no parameter or there is none.
    """

    def __init__(self, *args, trainable: Sequence[str] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.trainable = None if trainable is None else tuple(trainable)
        self._not_trainable = None if trainable is None else self._freeze()
        if self._not_trainable:
            print_log(f'This model can be tested, not trained: {self._not_trainable}', 'current', logging.WARNING)

    def _freeze(self) -> str | None:
        """Freeze all but ``trainable``; return what is wrong with these prefixes, and freeze nothing then.

        (Data-parallel wrappers refuse a model without a parameter that needs a gradient, in testing too.)
        """
        if not self.trainable:
            return 'trainable=[] trains nothing: name parameters by how they begin, or train all: model.trainable=None'
        parameters = dict(self.named_parameters())
        unmatched = [prefix for prefix in self.trainable if not any(name.startswith(prefix) for name in parameters)]
        if unmatched:
            return (f'trainable={list(self.trainable)}, and no parameter begins with {unmatched}. Parameters added by '
                    "APT exist with num_scales > 1 and a detail_branch other than 'none'. To train all parameters: "
                    'model.trainable=None')
        trained = [name for name in parameters if name.startswith(self.trainable)]
        for name, parameter in parameters.items():
            parameter.requires_grad_(name.startswith(self.trainable))
        count = sum(parameters[name].numel() for name in trained)
        total = sum(parameter.numel() for parameter in parameters.values())
        print_log(f'training {count} of {total} parameters, all others are frozen: {", ".join(trained)}', 'current')
        return None

    def train(self, mode: bool = True) -> nn.Module:
        """Switch to training mode, except for modules that are frozen."""
        if mode and self._not_trainable:
            raise LaunchError(self._not_trainable)
        super().train(mode)
        if mode and self.trainable is not None:
            _freeze_modes(self)
        return self


def _freeze_modes(module: nn.Module) -> None:
    """Put submodules whose parameters are all frozen into eval mode, and norms that have statistics but no parameters.

    Other modules without parameters follow their parent.
    """
    for child in module.children():
        parameters = list(child.parameters())
        trained = any(parameter.requires_grad for parameter in parameters)
        if not trained and (parameters or isinstance(child, _NormBase)):
            child.eval()
        else:
            _freeze_modes(child)
