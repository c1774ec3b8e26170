"""Predict pictures and videos with a trained model: ``apt_dense.load(...)``."""
from apt_dense.mm.inference.coco_ids import CocoIds
from apt_dense.mm.inference.model import Model
from apt_dense.mm.inference.opening import load
from apt_dense.mm.inference.results import Result, Tokens

__all__ = ['CocoIds', 'Model', 'Result', 'Tokens', 'load']
