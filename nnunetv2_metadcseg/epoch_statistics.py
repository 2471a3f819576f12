"""Running means over an epoch, kept on the device so that no training step waits for them."""

from __future__ import annotations

import torch
from torch import Tensor


class EpochStatistics:
    """Means of named scalars; values that are not a number (nothing to measure in a batch) are left out."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            pair = counted(value)
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def means(self) -> dict[str, float]:
        """Mean of every scalar added since the last reset; nan where nothing was measured."""
        return {name: (total / count).item() for name, (total, count) in self._sums.items()}


def counted(value: Tensor) -> Tensor:
    """(2,): a scalar and one, to be added up for a mean; zeros where it is not a number."""
    known = torch.isfinite(value)
    return torch.stack([torch.where(known, value, 0.0), known.float()])
