from __future__ import annotations

import numpy as np
import pytest

from tests.noise_tools.noise.shapes import SPACING, apply, ball, radius_of


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING, (0.5, 0.5)])
@pytest.mark.parametrize("radius", [1.0, 3.7])
def test_adds_the_radius_in_mm(spacing, radius):
    noisy = apply("dilation", ball(16, spacing), spacing, radius=(radius, radius))
    assert radius_of(noisy, spacing) == pytest.approx(16 + radius, abs=0.3)


def test_the_nearest_label_wins():
    label = np.zeros((9, 40), dtype=np.int16)
    label[:, 5], label[:, 24] = 5, 2
    noisy = apply("dilation", label, (1.0, 1.0), radius=(30.0, 30.0))
    assert (noisy[:, :15] == 5).all() and (noisy[:, 15:] == 2).all()


def test_labelled_voxels_never_change():
    label = ball(8, (1.0, 1.0))
    label[30:, :][label[30:, :] > 0] = 2
    noisy = apply("dilation", label, (1.0, 1.0), radius=(4.0, 4.0))
    assert np.array_equal(noisy[label > 0], label[label > 0])
