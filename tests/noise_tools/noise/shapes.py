"""Shapes with known sizes for the tests of single noise types."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from noise_tools import noise

SPACING = (2.5, 1.0, 0.5)


def ball(radius: float, spacing: Sequence[float] = SPACING, size: float = 60.0, value: int = 1) -> np.ndarray:
    """A ball (disc) of `radius` mm in the middle of a cube (square) of `size` mm."""
    axes = [(np.arange(round(size / step)) + 0.5) * step - size / 2 for step in spacing]
    grid = np.meshgrid(*axes, indexing="ij")
    return (sum(axis**2 for axis in grid) <= radius**2).astype(np.uint8) * value


def radius_of(label: np.ndarray, spacing: Sequence[float] = SPACING) -> float:
    """Radius in mm of the ball (disc) with the volume of the foreground."""
    volume = np.count_nonzero(label) * math.prod(spacing)
    return (3 * volume / (4 * math.pi)) ** (1 / 3) if label.ndim == 3 else math.sqrt(volume / math.pi)


def apply(
    name: str, label: np.ndarray, spacing: Sequence[float], severity: float = 1.0, seed: int = 0, **settings: Any
) -> np.ndarray:
    """Samples and applies a noise type; labels are the values in `label`."""
    kind = noise.load(name)([int(value) for value in np.unique(label) if value > 0], settings)
    return kind.apply(label, spacing, kind.sample(np.random.default_rng(seed), label, spacing, severity))
