"""Layer-wise learning rate decay for backbones that pack tokens, as EVA-02's recipes use it."""
import re
from collections.abc import Iterable

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from apt_dense.core.embed import ADDED_PARAMETERS
from apt_dense.core.layer_order import layer_of

OPTIONS = ('layer_decay_rate', 'num_layers', 'flat_decay_mult', 'no_weight_decay_keys', 'added_params_full_lr')


def layer_id(name: str, num_layers: int, added_params_full_lr: bool = True) -> int:
    """The layer that a parameter of a detector or segmentor is trained with.

    0: positions, class token, registers, patch embedding and a norm before the first block.  N + 1: block N.
    num_layers + 1: the norm after the last block, and everything outside the backbone.  So far the rule of
    detectron2's get_vit_lr_decay_rate and of EVA-02's segmentation code.

    Deviation: the convolution and the MLP that APT adds to the patch embedding start from nothing, while layer 0 is
    pre-trained; at its rate (0.8**25 = 0.004 of the base rate for EVA-02-L) they would not learn.  They count as
    num_layers + 1.

    Args:
        name: as in model.named_parameters(); the backbone is the model's attribute ``backbone``.
        num_layers: number of blocks.
        added_params_full_lr: False trains APT's additions with layer 0, as the rule above would.

    Raises:
        ValueError: for a name under ``backbone.`` that is none of these, or a block beyond num_layers.
    """
    top = num_layers + 1
    if not name.startswith('backbone.'):
        return top
    inner = name.removeprefix('backbone.')
    if inner in ADDED_PARAMETERS:
        return top if added_params_full_lr else 0
    return layer_of(name, num_layers, 'backbone.')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class APTLayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Give each parameter lr * layer_decay_rate**(num_layers + 1 - layer_id) and put those of one rate together.

    Groups run from the top layer to the first, so that the ``lr`` in the log, which is the first group's, is the
    recipe's.  Parameters that need no gradient are left out.  Options of paramwise_cfg:

    * layer_decay_rate: 0.7 (EVA-02-B detection), 0.8 (L); 0.85, 0.9 in segmentation.
    * num_layers: the backbone's depth, 12 (B) or 24 (L).
    * flat_decay_mult: multiplies the weight decay of one-dimensional parameters; 1 (detection: the decay is on
      everything), 0 (segmentation).  The meaning is mmengine's.
    * no_weight_decay_keys: parts of dotted names without weight decay; () (detection), ('pos_embed', 'cls_token')
      (segmentation).  A key that no parameter has is an error.
    * added_params_full_lr: see ``layer_id``.

    Raises:
        ValueError: if an option is unknown or missing, lr or weight_decay is not set, num_layers is not the number of
            blocks, a parameter of the backbone has no layer, nothing is left to train, or flat_decay_mult meets a model
            that FSDP has flattened.

    Source: detectron2, modeling/backbone/vit.py and the projects/ViTDet recipes; EVA-02/seg's layer decay constructor.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        unknown = sorted(set(self.paramwise_cfg) - set(OPTIONS))
        if unknown:
            raise ValueError(f'unknown paramwise_cfg options {unknown}: this constructor has {list(OPTIONS)}')
        missing = sorted({'layer_decay_rate', 'num_layers'} - set(self.paramwise_cfg))
        if missing:
            raise ValueError(f'paramwise_cfg has no {missing}: set layer_decay_rate (0.8 for EVA-02-L detection) and '
                             'num_layers (the depth of the backbone)')
        if self.base_lr is None or self.base_wd is None:
            raise ValueError(f'optimizer={self.optimizer_cfg}: set lr and weight_decay, the decay starts from them')

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        """Fill ``params`` with the groups of ``module``, which is the whole model; log one line a group.

        Args:
            params: an empty list; gets dicts with params, lr and weight_decay.
            module: the model, without a data-parallel wrapper.
            kwargs: of the method it overrides, which calls itself for submodules; not used.
        """
        names = [name for name, _ in module.named_parameters()]
        self._check_names(names)
        grouped: dict[tuple[int, float], list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in module.named_parameters():
            layer = self._layer_id(name)  # of frozen ones too: an unknown name must not pass because it is frozen
            if parameter.requires_grad:
                grouped.setdefault((layer, self._decay_mult(name, parameter)), []).append((name, parameter))
        if not grouped:
            raise ValueError(f'all {len(names)} parameters are frozen: nothing is left to train')
        for (layer, decay_mult), members in sorted(grouped.items(), reverse=True):
            params.append({
                'params': [parameter for _, parameter in members],
                'lr': self.base_lr * self._lr_scale(layer),
                'weight_decay': self.base_wd * decay_mult})
            self._log_group(layer, params[-1], members[0][0])

    def _layer_id(self, name: str) -> int:
        return layer_id(name, self.paramwise_cfg['num_layers'], self.paramwise_cfg.get('added_params_full_lr', True))

    def _lr_scale(self, layer: int) -> float:
        return self.paramwise_cfg['layer_decay_rate']**(self.paramwise_cfg['num_layers'] + 1 - layer)

    def _decay_mult(self, name: str, parameter: nn.Parameter) -> float:
        if not set(self.paramwise_cfg.get('no_weight_decay_keys', ())).isdisjoint(name.split('.')):
            return 0.0
        return self.paramwise_cfg.get('flat_decay_mult', 1.0) if parameter.ndim == 1 else 1.0

    def _check_names(self, names: Iterable[str]) -> None:
        """The blocks must be as many as num_layers, and each option must mean something for these names."""
        blocks = {match[1] for name in names if (match := re.match(r'backbone\.blocks\.(\d+)\.', name))}
        if len(blocks) != self.paramwise_cfg['num_layers']:
            raise ValueError(f'num_layers={self.paramwise_cfg["num_layers"]} but the model has {len(blocks)} blocks '
                             'named backbone.blocks.N: set num_layers to the depth of the backbone')
        parts = {part for name in names for part in name.split('.')}
        if self.paramwise_cfg.get('flat_decay_mult', 1.0) != 1.0 and '_fsdp_wrapped_module' in parts:
            raise ValueError('flat_decay_mult with FSDP: it flattens all parameters, and none would be decayed. Use '
                             'data-parallel training for this recipe')
        unmatched = [key for key in self.paramwise_cfg.get('no_weight_decay_keys', ()) if key not in parts]
        if unmatched:
            raise ValueError(f'no parameter is named by no_weight_decay_keys {unmatched}: remove them, or correct the '
                             'spelling')

    def _log_group(self, layer: int, group: dict, example: str) -> None:
        count = sum(parameter.numel() for parameter in group['params'])
        print_log(
            f'layer {layer:2d}: lr {group["lr"]:.3e} (x{self._lr_scale(layer):.4f}), weight decay '
            f'{group["weight_decay"]:g}, {len(group["params"])} tensors, {count} values, such as {example}',
            logger='current')
