"""Adaptive patches for models of transformers: ``adapt`` gives a model's vision encoder packed tokens of any size.

The only part of the package that imports transformers.
"""
from apt_dense.hf.adapting import adapt, packed_encoders
from apt_dense.hf.llava import adapt_llava
from apt_dense.hf.llava_processor import llava_processor
from apt_dense.hf.saving import load_added

__all__ = ['adapt', 'adapt_llava', 'llava_processor', 'load_added', 'packed_encoders']
