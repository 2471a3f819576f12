from __future__ import annotations

import numpy as np
import pytest

from noise_tools.geometry import bounding_box
from tests.noise_tools.noise.shapes import SPACING, apply, ball


def test_box_at_full_amount_is_the_bounding_box():
    label = ball(10)
    noisy = apply("approximation", label, SPACING, shape="box", amount=(1.0, 1.0))
    assert bounding_box(noisy) == bounding_box(label)
    assert noisy[bounding_box(label)].all()


def test_every_component_gets_its_own_box():
    label = np.zeros((30, 30), dtype=np.uint8)
    label[2:12, 2:12] = np.tri(10)
    label[18:28, 18:28] = np.tri(10)
    noisy = apply("approximation", label, (1.0, 1.0), shape="box", amount=(1.0, 1.0))
    assert noisy.sum() == 200


def test_ellipse_of_a_bar_fills_its_box_by_pi_over_four():
    label = np.zeros((80, 80), dtype=np.uint8)
    label[20:60, 30:50] = 1
    noisy = apply("approximation", label, (1.0, 1.0), shape="ellipse", amount=(1.0, 1.0))
    assert noisy.sum() == pytest.approx(800 * np.pi / 4, rel=0.02)
    assert bounding_box(noisy) == bounding_box(label)


def test_half_the_amount_lies_between():
    label = ball(10)
    sizes = [apply("approximation", label, SPACING, shape="box", amount=(a, a)).sum() for a in (0.0, 0.5, 1.0)]
    assert sizes[0] < sizes[1] < sizes[2]


def test_polygons_work_slice_by_slice_and_stay_within_the_tolerance():
    from noise_tools.geometry import signed_distance

    label = ball(14)
    noisy = apply("approximation", label, SPACING, tolerance=(3.0, 3.0))
    assert not np.array_equal(noisy, label)
    for clean, drawn in zip(label, noisy, strict=True):
        if clean.any():
            far = np.abs(signed_distance(clean > 0, SPACING[1:]))[drawn != clean]
            assert far.max(initial=0) <= 3.5


def test_polygons_keep_holes():
    label = ball(14, (0.5, 0.5)) - ball(8, (0.5, 0.5))
    noisy = apply("approximation", label, (0.5, 0.5), tolerance=(1.0, 1.0))
    assert noisy[60, 60] == 0 and noisy[60, 60 + 22] == 1


def test_overlapping_shapes_go_to_the_nearest_label():
    label = np.zeros((30, 30), dtype=np.uint8)
    label[5:25, 5:25] = np.where(np.tri(20), 1, 2)
    noisy = apply("approximation", label, (1.0, 1.0), shape="box", amount=(1.0, 1.0))
    assert np.array_equal(noisy, label)
