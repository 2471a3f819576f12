from __future__ import annotations

import numpy as np

from noise_tools.geometry import components, signed_distance
from tests.noise_tools.noise.shapes import SPACING, apply, ball


def test_adds_the_number_of_blobs_asked_for_away_from_the_structure():
    label = ball(6, SPACING, size=90.0)
    noisy = apply("addition", label, SPACING, rate=(3.0, 3.0), radius=(3.0, 3.0))
    assert np.array_equal(noisy[label > 0], label[label > 0])
    added = (noisy > 0) & (label == 0)
    assert 1 <= components(added)[1] <= 3
    assert signed_distance(label > 0, SPACING)[added].max() < -1.0


def test_more_blobs_for_a_higher_rate_and_the_first_ones_stay():
    label = ball(6, SPACING, size=90.0)
    few, many = (apply("addition", label, SPACING, rate=(r, r), radius=(3.0, 3.0)) for r in (1.0, 4.0))
    assert (many >= few).all() and many.sum() > few.sum()


def test_blobs_have_labels_of_the_case():
    label = ball(6, (1.0, 1.0), size=90.0)
    label[:5, :5] = 7
    noisy = apply("addition", label, (1.0, 1.0), rate=(20.0, 20.0), radius=(3.0, 3.0))
    assert set(np.unique(noisy[label == 0])) == {0, 1, 7}


def test_where_there_is_no_room_nothing_is_added():
    label = np.ones((8, 8), dtype=np.uint8)
    label[4, 4] = 0
    assert np.array_equal(apply("addition", label, (1.0, 1.0), rate=(5.0, 5.0), radius=(2.0, 2.0)), label)
