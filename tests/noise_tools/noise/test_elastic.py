from __future__ import annotations

import numpy as np
import pytest

from noise_tools.geometry import signed_distance
from tests.noise_tools.noise.shapes import SPACING, apply, ball


def test_the_contour_moves_by_about_the_amplitude_both_ways():
    label = ball(14)
    noisy = apply("elastic", label, SPACING, amplitude=(2.0, 2.0), length=(8.0, 8.0))
    distance = signed_distance(label > 0, SPACING)
    grown, lost = -distance[(noisy > 0) & (label == 0)], distance[(noisy == 0) & (label > 0)]
    assert grown.size > 100 and lost.size > 100
    assert 2.0 < np.percentile(grown, 99) < 6.5 and 2.0 < np.percentile(lost, 99) < 6.5


def test_a_longer_length_gives_a_smoother_contour():
    def outline(length: float) -> int:
        """Pixel edges around the shape."""
        noisy = apply("elastic", ball(20, (0.5, 0.5)), (0.5, 0.5), amplitude=(2.0, 2.0), length=(length, length))
        return sum(np.count_nonzero(np.diff(noisy, axis=axis)) for axis in (0, 1))

    assert outline(2.0) > 1.3 * outline(15.0)


def test_no_gap_opens_between_touching_labels():
    label = ball(14, (1.0, 1.0))
    label[:, 30:][label[:, 30:] > 0] = 2
    noisy = apply("elastic", label, (1.0, 1.0), amplitude=(2.0, 2.0), length=(5.0, 5.0))
    inner = signed_distance(label > 0, (1.0, 1.0)) > 6.5
    assert (noisy[inner] > 0).all()
    assert (noisy != label)[inner].any()


@pytest.mark.parametrize("seed", range(3))
def test_seeds_differ(seed):
    settings = {"amplitude": (2.0, 2.0), "length": (6.0, 6.0)}
    first, other = (apply("elastic", ball(10), SPACING, seed=s, **settings) for s in (seed, seed + 10))
    assert not np.array_equal(first, other)


def test_a_stronger_wobble_is_the_same_one():
    label = ball(14)
    changes = []
    for amplitude in (1.0, 2.0, 4.0):
        noisy = apply("elastic", label, SPACING, amplitude=(amplitude, amplitude), length=(8.0, 8.0))
        changes.append(((noisy > 0) & (label == 0), (noisy == 0) & (label > 0)))
    for (grown, lost), (grown_more, lost_more) in zip(changes, changes[1:], strict=False):
        assert grown.any() and lost.any()
        assert not (grown & ~grown_more).any() and not (lost & ~lost_more).any()
