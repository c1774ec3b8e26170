"""Adaptive patches for models of transformers: ``adapt`` gives a model's vision encoder packed tokens of any size.

The only part of the package that imports transformers.
"""
from apt_dense.hf.adapting import adapt, packed_encoders
from apt_dense.hf.saving import load_added

__all__ = ['adapt', 'load_added', 'packed_encoders']
