"""Pictures that mmengine, mmdetection and mmsegmentation draw."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.visualization import LocalVisBackend, Visualizer
from PIL import Image

from apt_dense.drawing.saving import save_picture
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


def write_whole_pictures() -> None:
    """Let the backend of local files write a picture whole or not, and say so.

    mmengine's writes with OpenCV, which leaves half a picture on a full disk and raises nothing.

    Delete when LocalVisBackend.add_image raises where it cannot write.
    """

    def make(original: Callable) -> Callable:

        def add_image(self: LocalVisBackend, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
            save_picture(Image.fromarray(image), Path(self.experiment._img_save_dir, f'{name}_{step}.png'))

        return add_image

    replace_once(LocalVisBackend, 'add_image', make)


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
