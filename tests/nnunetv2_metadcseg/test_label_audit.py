"""Scores, maps and error directions on small arrays whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnunetv2_metadcseg.label_audit import (
    MAX_OPTIMISM,
    Disagreement,
    disagreement,
    error_direction,
    expected_rate,
    joint_disagreement,
    label_disagreements,
    pooled,
    proposed_label,
    reliability,
    telling,
    with_usual_size,
    wrong_probability,
)


def ball(radius: float, center=(12, 12, 12), size=24, spacing=(1, 1, 1)) -> np.ndarray:
    grid = np.indices((size,) * 3)
    return sum(((g - c) * s) ** 2 for g, c, s in zip(grid, center, spacing, strict=True)) <= radius**2


def test_disagreement_weighs_by_confidence_and_tells_the_direction():
    given = np.array([1, 1, 0, 0], bool)
    found = disagreement(given, np.array([0.9, 0.1, 0.75, 0.2]))
    assert found.extra == pytest.approx(0.8) and found.missing == pytest.approx(0.5)
    assert found.size == 2 and found.rate == pytest.approx(1.3 / 2)


def test_disagreement_counts_no_ignored_voxel():
    given = np.array([1, 1, 0], bool)
    found = disagreement(given, np.array([0.9, 0.1, 0.9]), np.array([True, False, False]))
    assert (found.extra, found.missing, found.size) == (0, 0, 1)


def test_structure_that_neither_has_is_no_disagreement():
    assert disagreement(np.zeros(5, bool), np.full(5, 0.3)).rate == 0


def test_a_voxel_with_another_labels_name_counts_once():
    given, predicted = np.array([[1, 1, 2, 0, 2, 0]]), np.array([[1, 2, 2, 1, 0, 0]])
    confidence = np.array([[0.0, 0.5, 0.0, 0.25, 1.0, 0.0]])
    whole = joint_disagreement(given, predicted, confidence)
    assert (whole.extra, whole.missing, whole.size) == (1.25, 0.5, 4.0)


def test_exclusive_labels_are_decided_by_the_most_probable_class():
    """No class above 1/2 anywhere: the label that wins at every voxel is predicted, and agrees."""
    p = np.array([[0.25, 0.25, 0.4], [0.45, 0.3, 0.35], [0.3, 0.45, 0.25]])
    one, two = label_disagreements(np.array([1, 2, 0]), p.argmax(0), p, (1, 2))
    assert (one.rate, two.rate, one.size, two.size) == (0, 0, 1, 1)


def test_exclusive_labels_are_weighed_against_the_best_other_class():
    p = np.array([[0.25, 0.25, 0.4, 0.0], [0.45, 0.3, 0.35, 1.0], [0.3, 0.45, 0.25, 0.0]])
    given, valid = np.array([2, 1, 1, 2]), np.array([True, True, True, False])
    one, two = label_disagreements(given, p.argmax(0), p, (1, 2), valid)
    assert (one.extra, one.missing, one.size) == pytest.approx((0.15 + 0.05, 0.15, 1.5))
    assert (two.extra, two.missing, two.size) == pytest.approx((0.15, 0.15, 1))


def test_two_exclusive_classes_are_decided_at_one_half():
    random = np.random.default_rng(1)
    given, p = random.random((4, 5, 6)) > 0.5, random.random((4, 5, 6))
    (found,) = label_disagreements(given.astype(int), (p > 0.5).astype(int), np.stack([1 - p, p]), (1,))
    alone = disagreement(given, p)
    assert (found.extra, found.missing, found.size) == pytest.approx((alone.extra, alone.missing, alone.size))


def test_one_label_alone_is_the_joint_disagreement():
    random = np.random.default_rng(0)
    given, p = random.random((4, 5, 6)) > 0.5, random.random((4, 5, 6))
    alone = disagreement(given, p)
    joint = joint_disagreement(given.astype(int), (p > 0.5).astype(int), np.abs(2 * p - 1))
    assert joint.extra == pytest.approx(alone.extra, rel=1e-4)
    assert joint.missing == pytest.approx(alone.missing, rel=1e-4)
    assert joint.size == alone.size


def test_pooled_adds_up():
    parts = [
        disagreement(np.ones(2, bool), np.array([0.0, 1.0])),
        disagreement(np.zeros(2, bool), np.array([1.0, 0.0])),
    ]
    whole = pooled(parts)
    assert (whole.extra, whole.missing, whole.size) == (1, 1, 2)


def test_stray_voxels_where_a_label_is_empty_weigh_little_but_a_left_out_structure_does():
    labelled = [Disagreement(10, 0, 100, 100), Disagreement(30, 0, 200, 210)]
    stray, left_out, neither = Disagreement(0, 4, 2, 0), Disagreement(0, 300, 150, 0), Disagreement(0, 0, 0, 0)
    found = with_usual_size([*labelled, stray, left_out, neither])
    assert found[:2] == labelled
    assert [part.size for part in found[2:]] == [77.5, 150, 77.5]
    assert found[2].rate < 0.06 < 2 == found[3].rate and found[4].rate == 0
    assert with_usual_size([stray]) == [stray]  # nothing to tell the usual size from


def test_a_left_out_structure_of_usual_size_disagrees_as_much_as_an_invented_one():
    given, none = np.ones(50, bool), np.zeros(50, bool)
    invented, left_out = (disagreement(label, 1.0 - label) for label in (given, none))
    assert [part.rate for part in with_usual_size([invented, left_out])] == [2, 2]


def test_expected_rate_is_the_trusted_one_within_bounds():
    trusted = np.array([True, True, False, False, False])
    assert expected_rate(np.array([0.1, 0.3, 0.05, 0.05, 0.9]), trusted) == pytest.approx(0.2)
    assert expected_rate(np.array([0.1, 0.1, 0.9, 0.9, 0.9]), trusted) == pytest.approx(0.1 * MAX_OPTIMISM)


def test_expected_rate_without_trusted_cases_is_that_of_the_best():
    rates = np.linspace(0.1, 1.1, 11)
    assert expected_rate(rates, np.zeros(11, bool)) == pytest.approx(0.3)


def test_expected_rate_without_trusted_cases_is_bounded_by_those_of_another_group():
    rates = np.linspace(0.8, 0.9, 11)
    assert expected_rate(rates, np.zeros(11, bool), 0.05) == pytest.approx(0.05 * MAX_OPTIMISM)
    assert expected_rate(rates, np.zeros(11, bool), 5.0) == pytest.approx(0.82)


def test_expected_rate_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="No case"):
        expected_rate(np.array([]), np.array([], bool))


def test_expected_rate_is_never_zero():
    assert expected_rate(np.zeros(3), np.ones(3, bool)) > 0


def test_only_labels_with_a_structure_tell_what_is_expected():
    labelled, stray, neither = Disagreement(1, 1, 10, 10), Disagreement(0, 1, 10, 0), Disagreement(0, 0, 10, 0)
    assert telling([labelled, stray, neither]).tolist() == [True, False, False]
    assert telling([stray, neither]).tolist() == [True, False]
    assert telling([neither, neither]).tolist() == [True, True]


def test_reliability_falls_with_the_ratio():
    values = [reliability(r) for r in (0, 0.5, 1, 4, 100)]
    assert values[0] == 1 and values[2] == 0.5 and values == sorted(values, reverse=True) and values[-1] > 0


def test_wrong_probability_needs_both_a_sure_network_and_a_doubtful_case():
    p = np.array([0, 0.2, 1.0])
    assert wrong_probability(p, 1) == pytest.approx((1 - p) / 2)
    assert wrong_probability(p, 0) == pytest.approx(0 * p)
    assert wrong_probability(p, 9) == pytest.approx(0.9 * (1 - p))


def test_proposed_label_keeps_what_is_not_suspicious():
    given, predicted = np.array([1, 1, 0], np.int16), np.array([2, 2, 2], np.int16)
    proposed = proposed_label(given, predicted, np.array([0.9, 0.1, 0.5]))
    assert proposed.tolist() == [2, 1, 2] and proposed.dtype == np.int16


@pytest.mark.parametrize(("given", "proposed", "kind", "sign"), [(8, 6, "too large", 1), (6, 8, "too small", -1)])
def test_size_errors_have_a_signed_distance(given, proposed, kind, sign):
    found = error_direction(ball(given), ball(proposed), (1, 1, 1))
    assert found.kind == kind
    # Distances between voxel centers on rough surfaces come out up to half a voxel short.
    assert found.bias == pytest.approx(2 * sign, abs=0.5) and found.distance == pytest.approx(2, abs=0.5)
    assert found.shift == pytest.approx(0, abs=1e-9)


def test_distances_are_in_the_unit_of_the_spacing():
    spacing = (3, 1, 1)
    given, proposed = (ball(r, spacing=spacing) for r in (9, 6))
    found = error_direction(given, proposed, spacing)
    assert found.kind == "too large" and found.bias == pytest.approx(3, abs=0.75)


def test_shift_is_named_and_measured():
    found = error_direction(ball(6, (15, 12, 12)), ball(6), (2, 1, 1))
    assert found.kind == "shifted" and found.shift == pytest.approx(6) and abs(found.bias) < 0.5


def test_equal_labels_have_no_error():
    found = error_direction(ball(6), ball(6), (1, 1, 1))
    assert (found.kind, found.bias, found.distance) == ("none", 0, 0)


def test_empty_sides():
    nothing = np.zeros((24, 24, 24), bool)
    assert error_direction(nothing, ball(4), (1, 1, 1)).kind == "missing"
    extra = error_direction(ball(4), nothing, (1, 1, 1))
    assert extra.kind == "extra" and math.isnan(extra.bias) and extra.extra_parts == 1
    assert error_direction(nothing, nothing, (1, 1, 1)).kind == "none"


def test_missing_and_extra_parts_in_a_flat_image():
    first, second = np.zeros((1, 30, 30), bool), np.zeros((1, 30, 30), bool)
    first[0, 2:8, 2:8] = second[0, 2:8, 2:8] = True
    second[0, 20:26, 20:26] = True
    lost = error_direction(first, second, (999, 1, 1))
    assert (lost.kind, lost.missing_parts, lost.extra_parts) == ("missing", 1, 0)
    assert error_direction(second, first, (999, 1, 1)).kind == "extra"
    assert lost.shift < 30  # the spacing of the axis of length one plays no part


def test_a_wobbly_contour_is_neither():
    # Corners cut off on all sides and bumps added on all sides.
    proposed = np.zeros((1, 40, 40), bool)
    proposed[0, 10:30, 10:30] = True
    given = proposed.copy()
    for a in (slice(10, 13), slice(27, 30)):
        for b in (slice(10, 13), slice(27, 30)):
            given[0, a, b] = False
    given[0, 8:10, 18:22] = given[0, 30:32, 18:22] = given[0, 18:22, 8:10] = given[0, 18:22, 30:32] = True
    assert error_direction(given, proposed, (1, 1, 1)).kind == "mixed"


def cylinder(slices: int, radius: float, spacing: tuple, wobble: float = 0.0, x: float = 0.0) -> np.ndarray:
    _, b, c = np.meshgrid(np.arange(slices + 2), *(np.arange(-30, 31) * s for s in spacing[1:]), indexing="ij")
    mask = np.hypot(b, c - x) < radius + wobble * np.sin(5 * np.arctan2(b, c - x))
    mask[[0, -1]] = False
    return mask


@pytest.mark.parametrize("slices", [4, 8])
def test_on_thick_slices_the_ends_of_a_structure_do_not_hide_its_sides(slices):
    spacing = (5, 0.7, 0.7)
    found = error_direction(cylinder(slices, 12, spacing), cylinder(slices, 10, spacing), spacing)
    sides, ends = 11 * 2 * slices * 5, 2 * 11**2
    assert found.bias == pytest.approx(2 * sides / (sides + ends), rel=0.2)
    assert found.distance == pytest.approx(found.bias)


def test_a_wobble_on_thin_slices_of_coarse_voxels_is_still_no_shift():
    """Weighed by area the ends count more than they do per voxel."""
    spacing = (0.5, 2, 2)
    found = error_direction(cylinder(10, 24, spacing, wobble=6, x=1.0), cylinder(10, 24, spacing), spacing)
    assert found.distance < found.shift and found.kind == "mixed"
