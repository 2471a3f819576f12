from __future__ import annotations

import numpy as np
import pytest

from noise_tools import noise
from tests.noise_tools.noise.shapes import SPACING, apply, ball, radius_of

STILL = {"translation": (0.0, 0.0), "rotation": (0.0, 0.0), "scale": (0.0, 0.0), "shear": (0.0, 0.0)}


def centre(label: np.ndarray, spacing) -> np.ndarray:
    return np.argwhere(label).mean(axis=0) * spacing


@pytest.mark.parametrize("spacing", [SPACING, (0.5, 1.0)])
def test_translation_has_the_length_asked_for(spacing):
    label = ball(10, spacing)
    noisy = apply("affine", label, spacing, **STILL | {"translation": (6.0, 6.0)})
    assert np.linalg.norm(centre(noisy, spacing) - centre(label, spacing)) == pytest.approx(6.0, abs=0.6)
    assert radius_of(noisy, spacing) == pytest.approx(10, abs=0.2)


def test_whole_voxel_shift_is_exact():
    label = np.zeros((6, 30, 30), dtype=np.uint8)
    label[2:4, 10:14, 10:13], label[2:4, 14:16, 10:13] = 1, 2
    params = {"labels": [1, 2], "matrix": np.eye(3).tolist(), "translation": [2.5, 3.0, -1.0]}
    noisy = noise.load("affine").apply(label, SPACING, params)
    assert np.array_equal(noisy, np.roll(label, (1, 3, -2), axis=(0, 1, 2)))


def test_quarter_turn_of_a_bar_in_voxels_that_are_not_square():
    label = np.zeros((40, 80), dtype=np.uint8)  # 40 x 40 mm
    label[18:22, 20:60] = 3  # 4 x 20 mm
    params = {"labels": [3], "matrix": [[0, -1], [1, 0]], "translation": [0, 0]}
    noisy = noise.load("affine").apply(label, (1.0, 0.5), params)
    rows, columns = np.nonzero(noisy)
    assert np.ptp(rows) + 1 == pytest.approx(20, abs=1) and np.ptp(columns) + 1 == pytest.approx(8, abs=1)


def test_scale_changes_the_size_by_its_factor():
    sizes = {
        round(radius_of(apply("affine", ball(10), SPACING, seed=s, **STILL | {"scale": (0.5, 0.5)}))) for s in range(9)
    }
    assert len(sizes) > 2 and min(sizes) >= 6 and max(sizes) <= 17


def test_what_leaves_the_image_is_cut():
    label = np.zeros((10, 10), dtype=np.uint8)
    label[:3, :3] = 1
    params = {"labels": [1], "matrix": np.eye(2).tolist(), "translation": [-2.0, 0.0]}
    noisy = noise.load("affine").apply(label, (1.0, 1.0), params)
    assert noisy[0, :3].all() and noisy.sum() == 3
