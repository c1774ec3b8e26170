"""Histograms for the visualisation backends that have them; mmengine's interface knows none."""
from collections.abc import Sequence

import numpy as np
from mmengine.visualization import TensorboardVisBackend, Visualizer, WandbVisBackend


def add_histogram(visualizer: Visualizer, name: str, counts: Sequence[float], step: int) -> None:
    """Log how often 0, 1, 2, ... occur, to TensorBoard and W&B as histograms of their own.

    Args:
        counts: of each number; the bucket of number i goes from i - 0.5 to i + 0.5.
        step: of TensorBoard; W&B counts its own.
    """
    counts = np.asarray(counts, float)
    numbers, edges = np.arange(len(counts)), np.arange(len(counts) + 1) - 0.5
    for backend in visualizer._vis_backends.values():
        if isinstance(backend, TensorboardVisBackend):
            there = numbers[counts > 0] if counts.any() else numbers
            backend.experiment.add_histogram_raw(
                name, min=float(there[0]), max=float(there[-1]), num=counts.sum(), sum=(numbers * counts).sum(),
                sum_squares=(numbers**2 * counts).sum(), bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(), global_step=step)
        elif isinstance(backend, WandbVisBackend):
            wandb = backend.experiment
            wandb.log({name: wandb.Histogram(np_histogram=(counts, edges))}, commit=backend._commit)
