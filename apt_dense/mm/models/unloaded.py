"""What a checkpoint would leave unset in a model, before it is loaded."""
from collections.abc import Mapping

from torch import Tensor, nn

from apt_dense.core.position import positions_fit
from apt_dense.core.vit import PackedViT


def unloaded(model: nn.Module, checkpoint: Mapping) -> list[str]:
    """What mmengine would not load from a checkpoint: names of the model's parameters and statistics, in its order.

    They are missing or of another shape, of which mmengine only writes into the log.  A position table of another grid
    is there, because loading resamples it.

    Args:
        model: without a wrapper.
        checkpoint: a state dict, or what has one under 'state_dict'; 'module.' before its names does not count.
    """
    state = checkpoint.get('state_dict', checkpoint)
    shapes = {name.removeprefix('module.'): getattr(value, 'shape', None) for name, value in state.items()}
    tables = {f'{name}.pos_embed'.lstrip('.'): module.prefix_positions for name, module in model.named_modules()
              if isinstance(module, PackedViT)}

    def loads(name: str, own: Tensor) -> bool:
        shape = shapes.get(name)
        return shape == own.shape or shape is not None and name in tables and positions_fit(
            shape, own.shape, tables[name])

    return [name for name, own in model.state_dict().items()
            if not name.endswith('num_batches_tracked') and not loads(name, own)]
