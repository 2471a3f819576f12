from __future__ import annotations

import numpy as np
import pytest

from noise_tools.errors import NoiseToolsError
from noise_tools.noise.mixture import Mixture
from tests.noise_tools.noise.test_omission import grid_of_squares

ONE = (1.0, 1.0)


def noisy_grid(alternatives, seed: int = 0, share=ONE) -> np.ndarray:
    label = grid_of_squares()
    kind = Mixture((1, 2), {"share": share}, alternatives)
    return kind.apply(label, ONE, kind.sample(np.random.default_rng(seed), label, ONE, 0.5))


def squares(noisy: np.ndarray) -> np.ndarray:
    """Voxels of every square of the grid, changed or not."""
    return noisy.reshape(10, 6, 10, 6).astype(bool).sum(axis=(1, 3))


def test_objects_draw_by_weight():
    sizes = squares(noisy_grid([(1.0, [("erosion", {"radius": ONE})]), (3.0, [])]))
    assert set(np.unique(sizes)) <= {4, 6, 9, 16}  # the image border does not erode
    assert 12 <= np.count_nonzero(sizes < 16) <= 40


def test_share_leaves_objects_out():
    sizes = squares(noisy_grid([(1.0, [("erosion", {"radius": ONE})])], share=(0.5, 0.5)))
    assert 30 <= np.count_nonzero(sizes == 16) <= 70


def test_steps_are_applied_in_order():
    steps = [("erosion", {"radius": ONE}), ("omission", {"rate": ONE, "keep_one": "no"})]
    assert not noisy_grid([(1.0, steps)]).any()


def test_growth_stops_at_other_objects():
    label = grid_of_squares()
    noisy = noisy_grid([(1.0, [("dilation", {"radius": (2.0, 2.0)})])])
    assert np.array_equal(noisy[label > 0], label[label > 0])
    assert noisy[:57, :57].all()


def test_swap_may_take_any_label():
    label = grid_of_squares()
    assert np.array_equal(noisy_grid([(1.0, [("swap", {"rate": ONE})])]), np.where(label > 0, 3 - label, 0))


def test_wrong_settings_of_an_alternative_are_found_at_once():
    with pytest.raises(NoiseToolsError, match="has no parameter 'size'"):
        Mixture((1, 2), {}, [(1.0, [("erosion", {"size": ONE})])])


@pytest.mark.parametrize(
    ("settings", "alternatives", "sets"),
    [
        ({}, [(1.0, [("erosion", {})]), (1.0, [])], False),
        ({}, [(1.0, [("erosion", {"scope": "foreground"})])], False),  # no strength
        ({}, [(1.0, [("erosion", {})]), (1.0, [("elastic", {}), ("dilation", {"radius": (0.0, 3.0)})])], True),
        ({"share": ONE}, [(1.0, [("erosion", {})])], True),
    ],
)
def test_a_range_in_an_alternative_sets_a_strength(settings, alternatives, sets):
    assert Mixture((1, 2), settings, alternatives).sets_strength == sets
