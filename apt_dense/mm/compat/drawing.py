"""Pictures that mmengine, mmdetection and mmsegmentation draw."""
from collections.abc import Callable
from typing import Any

import numpy as np
from mmengine.visualization import Visualizer

from apt_dense.mm.compat.replacing import replace_once
from apt_dense.mm.data.load_picture import as_picture


def keep_drawing_limits() -> None:
    """Stop matplotlib from rescaling the picture when a drawn shape leaves it.

    draw_points does so on every version, the other shapes since matplotlib 3.11.

    Delete when mmengine's Visualizer.set_image switches autoscale off itself.
    """

    def make(original: Callable) -> Callable:

        def set_image(self: Visualizer, image: np.ndarray) -> None:
            original(self, image)
            self.ax_save.autoscale(False)

        return set_image

    replace_once(Visualizer, 'set_image', make)


def draw_on_any_picture(visualizer: type[Visualizer]) -> None:
    """Let a package's visualiser draw on arrays that are grey, have alpha or other types, as the models take them.

    mmsegmentation's stops at grey ones, and both wrap 16-bit values around.

    Delete when add_datasample takes such arrays.
    """

    def make(original: Callable) -> Callable:

        def add_datasample(self: Visualizer, name: str, image: np.ndarray, *args: Any, **kwargs: Any) -> None:
            return original(self, name, as_picture(image, name, bits=16), *args, **kwargs)

        return add_datasample

    replace_once(visualizer, 'add_datasample', make)
