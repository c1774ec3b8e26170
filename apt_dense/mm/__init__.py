"""apt_dense for OpenMMLab: importing this package registers its models, hooks, loops and optimiser constructor.

The registrations are in mmengine's root registries, so one serves mmdetection and mmsegmentation.  ``apt_dense.mm.det``
adds the classes that need mmdetection.  Configs name what they need in ``custom_imports``.
"""
from apt_dense.extras import from_extra

with from_extra('mm'):
    from apt_dense.mm import compat, fault_tolerance
    from apt_dense.mm.cli import loading
    from apt_dense.mm.data import samplers
    from apt_dense.mm.fault_tolerance import bad_data
    from apt_dense.mm.models import core_modules
    from apt_dense.mm.training import fsdp, hooks, layer_decay, log_patches, sync_bn, warm_thresholds

__all__ = ['bad_data', 'compat', 'core_modules', 'fault_tolerance', 'fsdp', 'hooks', 'layer_decay', 'loading',
           'log_patches', 'samplers', 'sync_bn', 'warm_thresholds']
