"""apt_dense for OpenMMLab: importing this package registers its models, hooks, loops and optimiser constructor.

The registrations are in mmengine's root registries, so one serves mmdetection and mmsegmentation.  ``apt_dense.mm.det``
adds the classes that need mmdetection.  Configs name what they need in ``custom_imports``.
"""
from apt_dense.mm import compat, fault_tolerance, hooks, layer_decay, models

__all__ = ['compat', 'fault_tolerance', 'hooks', 'layer_decay', 'models']
