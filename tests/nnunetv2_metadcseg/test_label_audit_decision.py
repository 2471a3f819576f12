from __future__ import annotations

import math

import pytest

from nnunetv2_metadcseg.label_audit_decision import decide, on_scale, spread


def test_a_label_that_varies_twice_as_much_counts_half_in_logarithms():
    assert on_scale(9.0, own=0.4, whole=0.2) == pytest.approx(3)
    assert on_scale(9.0, own=0.2, whole=0.4) == 9  # never more than it is
    assert on_scale(0.5, own=0.4, whole=0.2) == 0.5


def test_the_spread_of_few_right_labels_is_mostly_the_usual_one():
    assert spread([]) == spread([1.0]) == pytest.approx(0.2)
    assert spread([1.0, math.e**2]) == pytest.approx(math.sqrt((2 + 4 * 0.04) / 5))
    assert spread([1.0, 0.0]) == spread([1.0, 0.1])  # a label that agrees wholly has no logarithm


@pytest.mark.parametrize(
    ("ratio", "labels", "expected"),
    [
        (2.0, {"a": 1.9, "b": 0.1}, (2.0, "")),
        (2.0, {"a": 1.9, "b": 2.5}, (2.5, "b")),
        (0.5, {"a": 0.9, "b": 0.8}, (0.5, "")),  # no label disagrees more than right ones do
    ],
)
def test_a_label_decides_where_it_is_worse_than_all_together(ratio, labels, expected):
    assert decide(ratio, labels) == expected
