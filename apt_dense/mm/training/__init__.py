"""Hooks and optimiser settings of a training."""
