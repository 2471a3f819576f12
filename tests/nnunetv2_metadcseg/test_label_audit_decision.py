from __future__ import annotations

import numpy as np
import pytest

from nnunetv2_metadcseg.label_audit_decision import SPREAD, beyond_chance, decide


def test_a_single_label_cannot_be_the_worst_by_chance():
    assert beyond_chance(3.0, 1) == 3.0


@pytest.mark.parametrize("labels", [2, 4, 13])
def test_the_worst_of_right_labels_seldom_lies_beyond_chance(labels):
    right = np.exp(np.random.default_rng(0).normal(0, SPREAD, (4000, labels))).max(1)
    assert 0.02 < np.mean([beyond_chance(ratio, labels) > 1 for ratio in right]) < 0.3


@pytest.mark.parametrize(
    ("ratio", "labels", "expected"),
    [
        (2.0, {"a": 1.9, "b": 0.1}, (2.0, "")),
        (2.0, {"a": 1.9, "b": 2.5}, (2.5, "b")),
        (0.5, {"a": 0.9, "b": 0.0}, (0.5, "")),
    ],
)
def test_a_label_decides_where_it_is_worse_than_all_together(ratio, labels, expected):
    assert decide(ratio, labels) == expected
