"""Running means over an epoch, kept on the device so that no training step waits for them, and their line of log."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class EpochStatistics:
    """Means of named scalars; values that are not a number (nothing to measure in a batch) are left out."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        """Mean of every scalar added since the last reset; nan where nothing was measured."""
        sums = {name: counted(torch.stack(values)) for name, values in self._values.items()}
        return {name: (total / count).item() for name, (total, count) in sums.items()}


def counted(value: Tensor) -> Tensor:
    """(2,): sum and number of a tensor's finite values, to be added up for a mean."""
    known = torch.isfinite(value)
    return torch.stack([torch.where(known, value, 0.0).sum(), known.float().sum()])


def describe_epoch(means: dict[str, float], phase: str) -> str:
    """One line of log; a dash where nothing was measured (the start sees trusted patches only)."""

    def show(name: str) -> str:
        value = means.get(name, math.nan)
        return f"{value:.4f}" if math.isfinite(value) else "-"

    return (
        f"MetaDCSeg: disagreeing voxels {show('disagreeing')}, alpha there {show('alpha')}, beta there {show('beta')}, "
        f"boundary share {show('boundary')}, Dice on trusted patches {show('trusted_dice')}, "
        f"one-sidedness of label errors {show('label_bias')}, excess disagreement of given labels {show('excess')}, "
        f"weight of structure in given labels {show('case_weight')} ({phase})"
    )
