"""Heat maps and their colour bar."""
import numpy as np

from apt_dense.drawing.heat_maps import RAMP, colours, draw_colour_bar, draw_heat_map, score_range


def test_the_ends_and_the_middle_of_the_colours():
    found = colours(np.array([[0.0, 2.0], [4.0, 9.0]]), 0.0, 4.0)
    assert found.shape == (2, 2, 3)
    assert np.array_equal(found[0], RAMP[[0, 2]]) and np.array_equal(found[1], RAMP[[4, 4]])
    brightness = colours(np.linspace(0, 1, 50), 0.0, 1.0).sum(-1, dtype=int)
    assert (np.diff(brightness) > 0).all()  # also in grey a higher score is lighter


def test_one_square_a_patch_and_padding_hatched():
    picture = np.asarray(draw_heat_map(np.array([[0.0, 1.0], [1.0, 0.0]]), 32, (48, 64), 0.0, 1.0, (48, 40)))
    assert picture.shape == (48, 64, 3)
    assert (picture[:32, :32] == RAMP[0]).all() and (picture[:32, 32:40] == RAMP[4]).all()
    assert set(np.unique(picture[:, 40:])) == {150, 222}


def test_the_bar_has_a_line_at_each_threshold():
    plain, marked = (np.asarray(draw_colour_bar(200, 0.0, 4.0, marks)) for marks in ((), (1.0, 7.0)))
    changed = (plain[:, :18] != marked[:, :18]).any((1, 2)).nonzero()[0]
    assert changed.tolist() == [round(0.75 * 199)]  # 7 is beyond the bar


def test_one_bright_patch_does_not_make_the_rest_dark():
    scores = np.append(np.linspace(1, 2, 999), 1e6)
    low, high = score_range([scores])
    assert low == 1 and high < 2.1
    assert score_range([np.zeros((2, 2))]) == (0.0, 1.0)
