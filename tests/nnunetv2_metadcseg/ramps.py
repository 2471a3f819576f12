"""A structure on a line: what a network may say of it, and its label."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

WIDTH = 400


def ramp(edge: float, slope: float = 0.5) -> np.ndarray:
    """Probability of a structure that ends at `edge` of a line: (1, 1, WIDTH)."""
    return expit(slope * (edge - np.arange(WIDTH) - 0.5))[None, None]


def line(edge: int) -> np.ndarray:
    return (np.arange(WIDTH) < edge)[None, None]
