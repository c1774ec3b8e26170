"""Runs that survive kills, signals, full disks and bad data."""
from apt_dense.mm.fault_tolerance.setup import make_fault_tolerant

__all__ = ['make_fault_tolerant']
