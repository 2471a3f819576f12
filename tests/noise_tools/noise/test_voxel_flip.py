from __future__ import annotations

import numpy as np
import pytest

from noise_tools.geometry import signed_distance
from tests.noise_tools.noise.shapes import SPACING, apply, ball


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_image_flips_with_the_rate_everywhere(rate):
    label = ball(12)
    noisy = apply("voxel_flip", label, SPACING, rate=(rate, rate), region="image")
    assert np.mean(noisy != label) == pytest.approx(rate, abs=0.01)


def test_band_flips_near_the_surface_only():
    label = ball(12)
    noisy = apply("voxel_flip", label, SPACING, rate=(0.3, 0.3), width=(2.0, 2.0))
    near = np.abs(signed_distance(label > 0, SPACING)) <= 2.0
    assert not (noisy != label)[~near].any()
    assert np.mean((noisy != label)[near]) == pytest.approx(0.3, abs=0.02)


def test_new_values_are_spread_over_all_others():
    label = np.ones((100, 100), dtype=np.uint8)
    label[:10], label[10:20] = 5, 0
    label[99, 99] = 2
    noisy = apply("voxel_flip", label, (1.0, 1.0), rate=(1.0, 1.0), region="image")
    assert (noisy != label).all()
    counts = [np.count_nonzero(noisy[20:99] == value) for value in (0, 2, 5)]
    assert min(counts) > 0.9 * max(counts)
