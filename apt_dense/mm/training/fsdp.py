"""Fully sharded data parallel training: which modules are sharded as units."""
from mmengine.registry import FUNCTIONS
from torch import nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from apt_dense.core.block import Block


@FUNCTIONS.register_module()
def wrap_transformer_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's auto_wrap_policy: each transformer block is a unit, and what remains (neck, heads) one more.

    The arguments are torch's; see ``torch.distributed.fsdp.wrap.transformer_auto_wrap_policy``.
    """
    return transformer_auto_wrap_policy(module, recurse, nonwrapped_numel, transformer_layer_cls={Block})
