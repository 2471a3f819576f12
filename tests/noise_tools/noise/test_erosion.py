from __future__ import annotations

import numpy as np
import pytest

from tests.noise_tools.noise.shapes import SPACING, apply, ball, radius_of


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING, (0.5, 0.5)])
@pytest.mark.parametrize("radius", [1.0, 3.7])
def test_takes_the_radius_off_in_mm(spacing, radius):
    noisy = apply("erosion", ball(16, spacing), spacing, radius=(radius, radius))
    assert radius_of(noisy, spacing) == pytest.approx(16 - radius, abs=0.3)


def test_pixels_are_the_finest_voxel_edge():
    from noise_tools.noise.base import Pixels

    noisy = apply("erosion", ball(16), SPACING, radius=Pixels((4.0, 4.0)))
    assert np.array_equal(noisy, apply("erosion", ball(16), SPACING, radius=(2.0, 2.0)))


def test_scope_foreground_keeps_touching_labels_in_contact():
    label = ball(10, (1.0, 1.0))
    label[:, 30:][label[:, 30:] > 0] = 2
    apart = apply("erosion", label, (1.0, 1.0), radius=(2.0, 2.0))
    joined = apply("erosion", label, (1.0, 1.0), radius=(2.0, 2.0), scope="foreground")
    assert not apart[:, 29:31].any()
    assert joined[30, 29] == 1 and joined[30, 30] == 2
    assert np.array_equal(joined > 0, apply("erosion", (label > 0).astype(np.uint8), (1.0, 1.0), radius=(2.0, 2.0)))


def test_the_image_border_does_not_erode():
    label = np.zeros((20, 20), dtype=np.uint8)
    label[:, :10] = 1
    assert apply("erosion", label, (1.0, 1.0), radius=(3.0, 3.0))[0, :7].all()


def test_severity_draws_the_radius_from_the_range_of_the_user():
    from noise_tools import noise

    kind = noise.load("erosion")((1,), {"radius": (1.0, 3.0)})
    assert kind.sample(np.random.default_rng(0), ball(9), SPACING, 0.25)["radius"] == pytest.approx(1.5)
