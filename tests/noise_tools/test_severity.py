from __future__ import annotations

import math

import numpy as np
import pytest

from noise_tools import severity


def test_label_dice_counts_only_regions_of_the_clean_label():
    clean, noisy = np.array([1, 1, 0, 0]), np.array([1, 0, 2, 2])
    assert severity.label_dice(clean, noisy, [(1,), (2,)]) == [pytest.approx(2 / 3), None]
    assert severity.mean_label_dice(clean, noisy, [(1,), (2,)]) == pytest.approx(2 / 3)


def test_regions_are_unions_of_labels():
    clean, noisy = np.array([1, 2, 0, 0]), np.array([2, 1, 0, 0])
    assert severity.label_dice(clean, noisy, [(1, 2), (2,)]) == [1.0, 0.0]


def test_ignored_voxels_do_not_count():
    clean, noisy = np.array([1, 1, 9, 9]), np.array([1, 0, 9, 9])
    assert severity.mean_label_dice(clean, noisy, [(1,)]) == pytest.approx(2 / 3)


def test_label_without_foreground():
    empty = np.zeros(4, dtype=int)
    assert severity.mean_label_dice(empty, empty, [(1,)]) == 1.0
    assert severity.mean_label_dice(empty, np.ones(4, dtype=int), [(1,)]) == 0.0
    assert severity.mean_label_change(empty, empty, [(1,)]) == 0.0
    assert severity.mean_surface_distance(empty, empty, [(1,)], (1.0,)) == 0.0


def test_label_change_is_the_symmetric_difference_over_the_clean_size():
    assert severity.mean_label_change(np.array([1, 1, 0, 0]), np.array([0, 1, 1, 0]), [(1,)]) == 1.0


def test_surface_distance_is_in_mm_and_infinite_for_a_lost_region():
    clean, noisy = np.zeros((5, 40), dtype=int), np.zeros((5, 40), dtype=int)
    clean[:, 10:12], noisy[:, 14:16] = 1, 1
    assert severity.mean_surface_distance(clean, noisy, [(1,)], (1.0, 0.5)) == pytest.approx(2.0)
    assert severity.mean_surface_distance(clean, np.zeros_like(clean), [(1,)], (1.0, 0.5)) == math.inf


def search(value, target: float, rising: bool = False, usable=lambda s: True) -> severity.Found:
    return severity.find_severity(lambda s: severity.Trial(value(s), usable(s)), target, rising)


@pytest.mark.parametrize("target", [0.2, 0.55, 0.99])
def test_search_finds_a_smooth_target(target):
    found = search(lambda s: 1 - s**2, target)
    assert found.reached and found.value == pytest.approx(target, rel=0.003)
    assert found.severity == pytest.approx(math.sqrt(1 - target), abs=0.02)


def test_search_for_a_rising_measure():
    found = search(lambda s: 10 * s, 3.0, rising=True)
    assert found.reached and found.severity == pytest.approx(0.3, abs=0.01)


def test_full_strength_that_is_not_enough_is_said():
    found = search(lambda s: 1 - 0.3 * s, 0.5)
    assert found == severity.Found(1.0, pytest.approx(0.7), reached=False)


def test_of_coarse_steps_the_closest_is_kept_and_said():
    found = search(lambda s: 1.0 if s < 0.5 else 0.45 if s < 0.7 else 0.0, 0.6)
    assert found.value == 0.45 and not found.reached


def test_a_step_within_five_percent_counts_as_reached():
    assert search(lambda s: 1.0 if s < 0.5 else 0.58, 0.6).reached


def test_the_search_does_not_stop_at_an_unchanged_label():
    """Dice 1 is within the search's tolerance of 0.999, and much nearer than what the noise can do."""
    found = search(lambda s: 1.0 if s < 0.3 else 0.8, 0.999, usable=lambda s: s >= 0.3)
    assert found.value == 0.8 and not found.reached and found.severity == pytest.approx(0.3, abs=0.001)


def test_an_unchanged_full_strength_is_not_the_end():
    """A turn by half a circle changes nothing on a symmetric structure."""
    found = search(lambda s: 0.6 if 0.1 < s < 0.9 else 1.0, 0.7, usable=lambda s: 0.1 < s < 0.9)
    assert found.value == 0.6 and not found.reached


def test_a_lesser_strength_that_comes_nearer_is_found():
    """Shifted by half the image, a slice may fall on another structure: full strength does less."""
    found = search(lambda s: 20 * s if s <= 0.5 else 6.0, 9.0, rising=True)
    assert found.value == 8.75 and found.reached and found.severity == 7 / 16


def test_the_grid_is_not_tried_where_bisection_was_enough():
    tried = []
    search(lambda s: tried.append(s) or 1 - s, 0.3)
    assert len(tried) < 16


def test_of_equal_values_the_full_strength_stays():
    assert search(lambda s: 1 - 0.3 * min(1, 2 * s), 0.5).severity == 1.0


def test_where_nothing_is_usable_the_closest_comes_back():
    assert search(lambda s: 1.0, 0.7, usable=lambda s: False) == severity.Found(1.0, 1.0, reached=False)
    found = search(lambda s: 1.0 if s < 0.5 else 0.0, 0.7, usable=lambda s: False)
    assert found.value == 1.0 and not found.reached


def test_of_unusable_labels_one_with_foreground_is_preferred():
    """A dot is there or gone: gone is nearer to the target, and no label to train on."""
    found = severity.find_severity(lambda s: severity.Trial(1.0 if s < 0.5 else 0.0, False, kept=s < 0.5), 0.2)
    assert found.value == 1.0 and not found.reached
