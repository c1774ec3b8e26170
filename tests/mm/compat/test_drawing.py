"""Shapes outside a picture."""
import numpy as np
import pytest
import torch
from mmengine.visualization import Visualizer


def test_shapes_outside_a_picture_do_not_rescale_it():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 255
    visualizer = Visualizer(image=image)
    clean = visualizer.get_image()
    assert clean.shape == image.shape
    visualizer.draw_points(np.array([[300.0, 200.0]]))
    with pytest.warns(UserWarning, match='out of bounds'):
        visualizer.draw_lines(torch.tensor([100, 120]), torch.tensor([50, 90]))
    assert (visualizer.get_image() == clean).all()
    assert visualizer.ax_save.get_xlim() == (0, 60) and visualizer.ax_save.get_ylim() == (40, 0)
    visualizer.set_image(image[:20, :50])
    assert visualizer.ax_save.get_xlim() == (0, 50) and visualizer.ax_save.get_ylim() == (20, 0)
