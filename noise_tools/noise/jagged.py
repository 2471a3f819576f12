"""Jagged: bites and bumps along the edge, as from a shaky brush."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from noise_tools.geometry import bounding_box, grow_box, label_boxes, signed_distance
from noise_tools.noise.base import LENGTHS, Noise, Parameter, Params

_SIZES = 4  # distinct ball radii between low and high; each costs one distance map


class Jagged(Noise):
    """Balls around a share `ratio` of the edge voxels are added to the structure or bitten out of it.

    Radii lie between `radius` low and high; `bumps` is the share of balls that add. Bumps grow into background only and
    where two labels reach, the nearest wins; bites turn their own label into background.
    """

    name = "jagged"
    summary = "balls added to and bitten out of the edge"
    source = "edge distortion as in Confident Learning for noisy-labelled medical images (Zhang et al., MICCAI 2020)"
    parameters = (
        Parameter("ratio", (0.0, 0.5), "share", "share of edge voxels with a ball", strength=True, bounds=(0, 1)),
        Parameter("radius", (0.15, 0.6), "mm", "range of ball radii", False, True, (), LENGTHS),
        Parameter("bumps", (0.5, 0.5), "share", "share of balls that add", bounds=(0, 1)),
    )

    def sample(self, rng: np.random.Generator, label: np.ndarray, spacing: Sequence[float], severity: float) -> Params:
        return self._start(
            ratio=self._strength("ratio", label, spacing, severity),
            radius=[float(size) for size in self._range("radius", label, spacing)],
            bumps=self._uniform("bumps", rng, label, spacing),
            seed=self._seed(rng),
        )

    @classmethod
    def _margin(cls, spacing: Sequence[float], params: Params) -> float:
        return params["radius"][1]

    @classmethod
    def _apply(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
        if params["ratio"] <= 0:
            return label
        rng = np.random.default_rng(params["seed"])
        noisy = label.copy()
        nearest = np.full(label.shape, -np.inf, dtype=np.float32)
        for value, box, mask in label_boxes(label, params["labels"], spacing, cls._margin(spacing, params)):
            bumps, bites = _balls(mask, spacing, params, rng)
            noisy[box][bites & mask] = 0
            distance = signed_distance(mask, spacing, "outside")
            wins = bumps & (label[box] == 0) & (distance > nearest[box])
            noisy[box][wins] = value
            nearest[box][wins] = distance[wins]
        return noisy


def _balls(
    mask: np.ndarray, spacing: Sequence[float], params: Params, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Masks covered by adding and by biting balls. All edge voxels draw, so a higher ratio only adds balls."""
    from scipy.ndimage import binary_erosion

    edge = np.argwhere(mask & ~binary_erosion(mask, border_value=1))
    chosen = rng.random(len(edge)) < params["ratio"]
    size = rng.integers(_SIZES, size=len(edge))
    adds = rng.random(len(edge)) < params["bumps"]
    radii = np.linspace(*params["radius"], _SIZES)
    covered = [np.zeros_like(mask), np.zeros_like(mask)]
    for kind, wanted in enumerate((adds, ~adds)):
        for number, radius in enumerate(radii):
            centers = edge[chosen & wanted & (size == number)]
            if len(centers):
                covered[kind] |= _within(centers, mask.shape, spacing, radius)
    return covered[0], covered[1]


def _within(centers: np.ndarray, shape: Sequence[int], spacing: Sequence[float], radius: float) -> np.ndarray:
    """Voxels whose centre is at most `radius` mm from one of `centers` (always the centers themselves)."""
    from scipy.ndimage import distance_transform_edt

    points = np.zeros(shape, dtype=bool)
    points[tuple(centers.T)] = True
    box = grow_box(bounding_box(points), shape, spacing, radius)
    result = np.zeros(shape, dtype=bool)
    result[box] = distance_transform_edt(~points[box], sampling=spacing) <= radius
    return result
