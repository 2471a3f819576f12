from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from nnunetv2_metadcseg.label_audit_decision import decide, excess, lower_spread, ratio_of, spread


def test_what_counts_is_beyond_the_worst_of_several_right_labels():
    chance = NormalDist().inv_cdf(0.75)
    assert excess(math.e, own=0.4, labels=1) == pytest.approx(2.5 - chance)
    assert excess(math.e, own=0.4, labels=12) < excess(math.e, own=0.4, labels=2) < 2.5 - chance
    assert excess(1.2, own=0.4, labels=2) == excess(0.0, own=0.4, labels=2) == 0


def test_what_is_not_beyond_chance_decides_nothing():
    assert ratio_of(2.0, 0.5) == pytest.approx(math.e) and ratio_of(0.0, 0.5) == 0


def test_the_spread_of_few_right_labels_is_mostly_the_usual_one():
    assert spread([]) == spread([1.0]) == pytest.approx(0.2)
    assert spread([1.0, math.e**2]) == pytest.approx(math.sqrt((2 + 4 * 0.04) / 5))
    assert spread([1.0, 0.0]) == spread([1.0, 0.1])  # a label that agrees wholly has no logarithm


def test_the_spread_of_all_labels_is_that_of_their_better_half():
    right = np.exp(np.random.default_rng(0).normal(0, 0.5, 300))
    assert lower_spread(right) == pytest.approx(0.5, abs=0.08)
    assert lower_spread([*right, *(right[:100] * 9)]) == pytest.approx(0.6, abs=0.1)
    assert lower_spread([]) == lower_spread([2.0]) == 0


@pytest.mark.parametrize(
    ("ratio", "labels", "expected"),
    [
        (2.0, {"a": 1.9, "b": 0.1}, (2.0, "")),
        (2.0, {"a": 1.9, "b": 2.5}, (2.5, "b")),
        (0.5, {"a": 0.0, "b": 0.0}, (0.5, "")),
    ],
)
def test_a_label_decides_where_it_is_worse_than_all_together(ratio, labels, expected):
    assert decide(ratio, labels) == expected
