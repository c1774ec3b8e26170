"""Training on CPUs: bfloat16, and several processes."""
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module(force=True)
class BF16OptimWrapper(OptimWrapper):
    """Forward passes under bfloat16 autocast, on a CPU too; arguments are OptimWrapper's.

    bfloat16 has float32's range, so no loss scaler is needed.

    Delete when mmengine's AmpOptimWrapper(dtype='bfloat16') no longer asserts a GPU.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast on mmengine's device, inside OptimWrapper's own context (gradient accumulation)."""
        with super().optim_context(model), torch.autocast(get_device(), dtype=torch.bfloat16):
            yield


def setup_cpu_ddp(cfg: Config) -> None:
    """Prepare data-parallel training on CPUs, before the runner is built; nothing happens on other devices.

    mmengine calls torch.cuda.set_device for every launcher and gives DDP a GPU's index: here the gloo group is made
    first, which mmengine then keeps, with the timeout of ``env_cfg.dist_cfg`` (seconds); and ``cfg.model_wrapper_cfg``
    gets ``device_ids=None`` and a wrapper whose SyncBN works on CPUs (``sync_bn.CPUDistributedDataParallel``).

    Delete when mmengine's init_dist and wrap_model look at the device.

    Raises:
        ValueError: for a launcher other than 'none' and 'pytorch' on a CPU.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none' or get_device() != 'cpu':
        return
    if launcher != 'pytorch':
        raise ValueError(f'launcher {launcher!r} without a GPU: only torchrun works on CPUs, use --launcher pytorch '
                         '(tools/dist_train.sh)')
    if not torch.distributed.is_initialized():
        seconds = ((cfg.get('env_cfg') or {}).get('dist_cfg') or {}).get('timeout')
        torch.distributed.init_process_group('gloo', **({'timeout': timedelta(seconds=seconds)} if seconds else {}))
    # mmengine reads find_unused_parameters from the config's top level only where there is no model_wrapper_cfg.
    defaults = {
        'type': 'CPUDistributedDataParallel', 'device_ids': None, 'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False)}
    cfg.model_wrapper_cfg = {**defaults, **(cfg.get('model_wrapper_cfg') or {})}
