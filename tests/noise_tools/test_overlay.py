from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from noise_tools.overlay import Plane, border_segments, draw_overlay, fullest_plane, png_bytes, window_around
from tests.noise_tools.label_files import two_balls


def test_border_follows_the_voxels_exactly():
    labels = np.zeros((4, 5), dtype=int)
    labels[1:3, 2] = 1
    edges = {tuple(map(tuple, segment)) for segment in border_segments(labels)}
    assert edges == {
        ((1.5, 0.5), (2.5, 0.5)),
        ((1.5, 2.5), (2.5, 2.5)),
        *(((x, y - 0.5), (x, y + 0.5)) for x in (1.5, 2.5) for y in (1, 2)),
    }


def test_border_between_touching_labels_and_at_the_image_edge():
    labels = np.array([[1, 2]])
    assert len(border_segments(labels)) == 7  # six around, one between


def test_fullest_plane_cuts_the_coarsest_axis_unless_told():
    weight = np.zeros((5, 6, 7), dtype=bool)
    weight[3, :, 1] = True
    weight[1, 2, 2] = True
    plane = fullest_plane(weight, (3.0, 1.0, 0.5))
    assert (plane.axis, plane.index, plane.title) == (0, 3, "z = 3")
    assert plane.aspect == 2.0
    assert fullest_plane(weight, (3.0, 1.0, 0.5), axis=2).index == 1
    assert np.array_equal(plane.cut(weight), weight[3])
    assert fullest_plane(weight[0], (1.0, 1.0)).axis is None


def test_window_keeps_structures_inside_the_slice():
    mask = np.zeros((50, 60), dtype=bool)
    mask[0:4, 40:60] = True
    rows, columns = window_around(mask)
    assert rows.start == 0 and rows.stop < 50 and columns.start < 40 and columns.stop == 60
    assert window_around(np.zeros((5, 6), dtype=bool)) == (slice(0, 5), slice(0, 6))


def test_same_picture_same_bytes():
    def draw() -> bytes:
        figure = Figure(figsize=(2, 2))
        label = two_balls()
        draw_overlay(figure.subplots(), Plane((1, 1, 1), 0, 6), label * 1.0, label, two_balls(shift=1))
        return png_bytes(figure)

    assert draw() == draw()
