from __future__ import annotations

import numpy as np
import pytest

from noise_tools import noise
from tests.noise_tools.noise.shapes import SPACING, apply, ball, radius_of

PLAIN = {"theta2": (0.1, 0.1), "theta3": (0.0, 0.0), "smoothing": (0.0, 0.0)}


@pytest.mark.parametrize(("theta1", "direction"), [(1.0, 1), (0.0, -1)])
def test_the_border_creeps_theta2_voxels_a_step(theta1, direction):
    label = ball(15, (1.0, 1.0))
    noisy = apply("markov", label, (1.0, 1.0), steps=(40.0, 40.0), theta1=(theta1, theta1), **PLAIN)
    moved = direction * (radius_of(noisy, (1.0, 1.0)) - radius_of(label, (1.0, 1.0)))
    # A border voxel with several open faces goes no faster, but a rough border is longer than a smooth one.
    assert 4 < moved < 12
    assert np.all(noisy >= label) if direction > 0 else np.all(noisy <= label)


def test_it_creeps_at_a_similar_speed_in_mm_along_all_axes():
    label = np.zeros((40, 160), dtype=np.uint8)
    label[15:25, 60:100] = 1  # 40 x 40 mm in voxels of 4 x 1 mm
    sides = np.zeros(2)
    for seed in range(10):
        noisy = apply("markov", label, (4.0, 1.0), seed=seed, steps=(60.0, 60.0), theta1=(1.0, 1.0), **PLAIN)
        sides += noisy[:, 75:85].sum() / 10 * 4 - 40, noisy[18:22].sum() / 4 - 40
    assert 0.5 < sides[0] / sides[1] < 2.5  # counted in voxels alone it would be 4


def test_theta1_decides_the_balance():
    label = ball(12)
    grown, shrunk = (
        apply("markov", label, SPACING, steps=(80.0, 80.0), theta1=(t, t), smoothing=(1.0, 1.0)) for t in (0.8, 0.2)
    )
    assert grown.sum() > 1.05 * label.sum() and shrunk.sum() < 0.95 * label.sum()


def test_smoothing_removes_single_flips():
    label = ball(12)
    settings = {"steps": (1.0, 1.0), "theta2": (0.0, 0.0), "theta3": (0.2, 0.2)}
    rough = apply("markov", label, SPACING, smoothing=(0.0, 0.0), **settings)
    smooth = apply("markov", label, SPACING, smoothing=(2.0, 2.0), **settings)
    assert np.count_nonzero(smooth != label) < 0.3 * np.count_nonzero(rough != label)


def test_voxels_join_the_structure_they_touch():
    label = np.zeros((20, 40), dtype=np.uint8)
    label[8:12, 5:15], label[8:12, 25:35] = 4, 2
    noisy = apply("markov", label, (1.0, 1.0), steps=(10.0, 10.0), theta1=(1.0, 1.0), **PLAIN)
    assert set(np.unique(noisy[:, :15])) == {0, 4} and set(np.unique(noisy[:, 25:])) == {0, 2}


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 1.0, 1.0)])
def test_a_fast_border_is_not_cut_by_the_crop(spacing, monkeypatch):
    label = ball(8, spacing, size=90.0)
    fast = {"steps": (120.0, 120.0), "theta1": (0.8, 0.8), "theta2": (0.05, 0.05)}
    noisy = apply("markov", label, spacing, **fast)
    monkeypatch.setattr(noise.load("markov"), "_margin", classmethod(lambda *_: 1000.0))  # the whole image
    assert np.array_equal(noisy, apply("markov", label, spacing, **fast))
