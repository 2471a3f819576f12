"""Addition: structures that are not there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from noise_tools.geometry import Box, smooth_field
from noise_tools.noise.base import LENGTHS, Noise, Parameter, Params
from noise_tools.noise.omission import objects

_TRIES = 32


class Addition(Noise):
    """Puts `rate` blobs of `radius` mm per connected component into the background, each with a label of the case.

    Blobs are ellipsoids of random proportions with a wobbly surface. Their centres lie at least one radius from any
    labelled voxel where there is room. A fraction of a blob is a smaller blob.
    """

    name = "addition"
    summary = "blobs of false positives in the background"
    source = "false positive annotations; this project"
    parameters = (
        Parameter("rate", (0.0, 5.0), "blobs per component", "how many are added", strength=True, bounds=(0, 1000)),
        Parameter("radius", (0.5, 1.0), "mm", "range of blob radii", False, True, (), LENGTHS),
    )

    def sample(self, rng: np.random.Generator, label: np.ndarray, spacing: Sequence[float], severity: float) -> Params:
        return self._start(
            count=self._strength("rate", label, spacing, severity) * len(objects(label, self.labels)[1]),
            radius=[float(size) for size in self._range("radius", label, spacing)],
            seed=self._seed(rng),
        )

    @classmethod
    def _box(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> Box | None:
        return tuple(slice(0, size) for size in label.shape)

    @classmethod
    def _apply(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
        noisy = label.copy()
        present = [value for value in params["labels"] if (label == value).any()]
        if not present:
            return noisy
        left = params["count"]
        rng = np.random.default_rng(params["seed"])
        while left > 0:
            shrink = min(1.0, left) ** (1 / label.ndim)
            left -= 1
            _add_blob(label, noisy, spacing, present, params["radius"], shrink, rng)
        return noisy


def _add_blob(
    label: np.ndarray,
    noisy: np.ndarray,
    spacing: Sequence[float],
    present: Sequence[int],
    radii: Sequence[float],
    shrink: float,
    rng: np.random.Generator,
) -> None:
    """Draws one blob. The numbers drawn depend on neither `shrink` nor what is in the way."""
    radius = rng.uniform(*radii)
    value = present[rng.integers(len(present))]
    stretch = np.exp(rng.uniform(-0.3, 0.3, label.ndim))
    places = (rng.random((_TRIES, label.ndim)) * label.shape).astype(int)
    wobble_seed = rng.integers(2**32)
    center = next((place for place in places if _is_free(label, place, spacing, radius)), None)
    if center is None:
        return
    axes = shrink * radius * stretch
    window = _window(center, 1.4 * axes, spacing, label.shape)
    grid = np.ogrid[window]
    distance = np.sqrt(
        sum(((axis - c) * step / a) ** 2 for axis, c, step, a in zip(grid, center, spacing, axes, strict=True))
    )
    field = smooth_field(np.random.default_rng(wobble_seed), distance.shape, spacing, radius)
    part = noisy[window]
    part[(distance < 1 + 0.15 * np.clip(field, -2, 2)) & (part == 0)] = value


def _is_free(label: np.ndarray, place: np.ndarray, spacing: Sequence[float], radius: float) -> bool:
    window = _window(place, [2 * radius] * label.ndim, spacing, label.shape)
    return not label[window].any()


def _window(center: Sequence[int], reach: Sequence[float], spacing: Sequence[float], shape: Sequence[int]) -> Box:
    """Voxels within `reach` mm of `center` along each axis, cut at the image border."""
    steps = [int(np.ceil(r / s)) for r, s in zip(reach, spacing, strict=True)]
    return tuple(slice(max(0, c - n), min(size, c + n + 1)) for c, n, size in zip(center, steps, shape, strict=True))
