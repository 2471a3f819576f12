from __future__ import annotations

import numpy as np
import pytest

from noise_tools.geometry import signed_distance
from tests.noise_tools.noise.shapes import SPACING, apply, ball

SIZE = {"radius": (1.0, 3.0)}


@pytest.mark.parametrize(("bumps", "sign"), [(1.0, 1), (0.0, -1)])
def test_bumps_only_add_and_bites_only_remove(bumps, sign):
    label = ball(12)
    noisy = apply("jagged", label, SPACING, ratio=(0.1, 0.1), bumps=(bumps, bumps), **SIZE)
    change = noisy.astype(int) - label
    assert (sign * change >= 0).all() and np.count_nonzero(change) > 200


def test_changes_stay_within_a_ball_of_the_edge():
    label = ball(12)
    noisy = apply("jagged", label, SPACING, ratio=(0.3, 0.3), **SIZE)
    distance = np.abs(signed_distance(label > 0, SPACING))
    assert distance[noisy != label].max() <= 3.0 + max(SPACING)


def test_a_higher_ratio_keeps_the_balls_of_the_lower():
    label = ball(12)
    few, many = (apply("jagged", label, SPACING, ratio=(r, r), bumps=(1.0, 1.0), **SIZE) for r in (0.02, 0.2))
    assert few.sum() < many.sum() and (many >= few).all()
