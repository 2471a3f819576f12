"""Voxel flip: independent errors of single voxels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from noise_tools.geometry import Box, signed_distance
from noise_tools.noise.base import LENGTHS, Noise, Parameter, Params


class VoxelFlip(Noise):
    """Every voxel of a region changes with probability `rate` into another value, drawn from background and all labels.

    The region is the band within `width` mm of the foreground's surface, or the whole image.
    """

    name = "voxel_flip"
    summary = "independent flips of single voxels"
    source = "i.i.d. label noise, the usual assumption of noisy-label theory (e.g. Natarajan et al. 2013)"
    parameters = (
        Parameter("rate", (0.0, 0.9), "probability", "that a voxel flips", strength=True, bounds=(0, 1)),
        Parameter("region", "band", "", "where voxels flip", choices=("band", "image")),
        Parameter("width", (0.5, 0.5), "mm", "band: distance from the surface", False, True, (), LENGTHS),
    )

    def sample(self, rng: np.random.Generator, label: np.ndarray, spacing: Sequence[float], severity: float) -> Params:
        return self._start(
            rate=self._strength("rate", label, spacing, severity),
            region=self._choice("region"),
            width=self._uniform("width", rng, label, spacing),
            seed=self._seed(rng),
        )

    @classmethod
    def _margin(cls, spacing: Sequence[float], params: Params) -> float:
        return params["width"]

    @classmethod
    def _box(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> Box | None:
        if params["region"] == "image":
            return tuple(slice(0, size) for size in label.shape)
        return super()._box(label, spacing, params)

    @classmethod
    def _apply(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
        if params["rate"] <= 0:
            return label
        rng = np.random.default_rng(params["seed"])
        flips = rng.random(label.shape, dtype=np.float32) < params["rate"]
        if params["region"] == "band":
            distance = signed_distance(np.isin(label, params["labels"]), spacing)
            flips &= np.abs(distance) <= params["width"]
        values = np.array([0, *params["labels"]])
        # Another value: the position among `values`, moved on by 1 to n - 1.
        move = rng.integers(1, len(values), size=label.shape, dtype=np.int16)
        position = np.searchsorted(np.sort(values), label).clip(max=len(values) - 1)
        return np.where(flips, np.sort(values)[(position + move) % len(values)], label)
