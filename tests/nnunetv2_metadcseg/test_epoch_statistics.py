from __future__ import annotations

import math

import torch

from nnunetv2_metadcseg.epoch_statistics import EpochStatistics


def test_means_of_named_scalars():
    statistics = EpochStatistics()
    statistics.add(alpha=torch.tensor(0.25), dice=torch.tensor(1.0))
    statistics.add(alpha=torch.tensor(0.75))
    assert statistics.means() == {"alpha": 0.5, "dice": 1.0}


def test_values_that_are_not_finite_are_left_out():
    statistics = EpochStatistics()
    for value in (0.5, math.nan, math.inf):
        statistics.add(alpha=torch.tensor(value))
    assert statistics.means() == {"alpha": 0.5}


def test_nothing_measured_is_nan():
    statistics = EpochStatistics()
    statistics.add(alpha=torch.tensor(math.nan))
    assert math.isnan(statistics.means()["alpha"])


def test_reset_forgets():
    statistics = EpochStatistics()
    statistics.add(alpha=torch.tensor(1.0))
    statistics.reset()
    assert statistics.means() == {}
