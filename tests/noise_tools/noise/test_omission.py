from __future__ import annotations

import numpy as np
import pytest

from noise_tools.noise.omission import objects
from tests.noise_tools.noise.shapes import apply


def grid_of_squares() -> np.ndarray:
    label = np.zeros((60, 60), dtype=np.uint8)
    for row in range(10):
        for column in range(10):
            label[row * 6 : row * 6 + 4, column * 6 : column * 6 + 4] = 1 + (row % 2)
    return label


def test_each_component_goes_with_the_rate_and_whole():
    label = grid_of_squares()
    counts = [np.count_nonzero(apply("omission", label, (1.0, 1.0), seed=s, rate=(0.3, 0.3))) for s in range(30)]
    assert all(count % 16 == 0 for count in counts)
    assert np.mean(counts) / 1600 == pytest.approx(0.7, abs=0.03)


def test_one_is_kept_unless_told_otherwise():
    label = grid_of_squares()
    assert np.count_nonzero(apply("omission", label, (1.0, 1.0), rate=(1.0, 1.0))) == 16
    assert not apply("omission", label, (1.0, 1.0), rate=(1.0, 1.0), keep_one="no").any()


def test_whole_labels_go():
    noisy = apply("omission", grid_of_squares(), (1.0, 1.0), rate=(1.0, 1.0), of="label")
    assert len(np.unique(noisy)) == 2 and np.count_nonzero(noisy) == 800


def test_objects_counts_components_per_label_corners_connected():
    label = np.array([[1, 0, 0], [0, 1, 2], [2, 0, 2]])
    numbered, values = objects(label, (1, 2))
    assert values == [1, 2, 2]
    assert np.array_equal(numbered > 0, label > 0)


def test_a_nested_structure_goes_with_all_of_its_parts():
    label = np.zeros((30, 60), dtype=np.uint8)
    for column in (5, 35):
        label[5:25, column : column + 20] = 1
        label[10:20, column + 5 : column + 15] = 2
    noisy = apply("omission", label, (1.0, 1.0), rate=(1.0, 1.0), of="foreground")
    assert np.count_nonzero(noisy) == 400 and np.count_nonzero(noisy == 2) == 100
