from __future__ import annotations

import math

import numpy as np
import pytest
from weight_check import auroc, count, spread_evenly


def test_auroc_against_all_pairs():
    rng = np.random.default_rng(0)
    suspicion = rng.integers(0, 20, 300) / 20 + 0.01
    wrong = rng.random(300) < suspicion
    pairs = np.sign(suspicion[wrong][:, None] - suspicion[~wrong][None])
    assert auroc(*count(suspicion, wrong)) == pytest.approx(((pairs + 1) / 2).mean())


def test_auroc_limits():
    assert auroc(np.array([0, 5]), np.array([7, 0])) == 1
    assert auroc(np.array([5, 0]), np.array([0, 7])) == 0
    assert auroc(np.array([5]), np.array([7])) == 0.5
    assert math.isnan(auroc(np.array([0]), np.array([7])))


def test_spread_evenly():
    cases = [str(i) for i in range(10)]
    assert spread_evenly(cases, 4) == ["0", "3", "6", "9"]
    assert spread_evenly(cases, 20) == cases
