"""Markov: the border creeps, one voxel at a time, more outwards or more inwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from noise_tools.geometry import Box, bounding_box, grow_box, within
from noise_tools.noise.base import LENGTHS, Noise, Parameter, Params, Pixels


class Markov(Noise):
    """A random walk of the border in `steps` steps, each outwards with probability `theta1`, else inwards.

    In an outward step every background voxel with a face on a structure joins it with probability `theta2`; in an
    inward step every structure voxel with a face on background leaves. Across a face of a voxel longer than the pixel
    (the finest edge) the probability is smaller in proportion, so that the border creeps at a similar speed in mm
    along all axes (up to about twice as fast along the longest edge, because a rough front also advances sideways).
    Then each voxel near the structure flips with probability `theta3`, and a Gaussian of `smoothing` mm with majority
    vote rounds the result.

    Joining voxels take the label of the structure they touch (the first declared one if there are several); borders
    between two labels do not move by themselves.
    """

    name = "markov"
    summary = "random walk of the border, biased outwards or inwards"
    source = (
        "Yao et al., Spatial Correction, ICLR 2023 (arXiv 2308.02498), definition 1; extended here to labels and mm"
    )
    parameters = (
        Parameter("steps", (0.0, 200.0), "steps", "T, number of steps", strength=True, bounds=(0, 10000)),
        Parameter("theta1", (0.2, 0.8), "probability", "that a step goes outwards", bounds=(0, 1)),
        Parameter("theta2", (0.05, 0.05), "probability", "that a border voxel changes in a step", bounds=(0, 1)),
        Parameter("theta3", (0.0, 0.0), "probability", "that any voxel near the structure flips", bounds=(0, 0.5)),
        Parameter("smoothing", Pixels((1.0, 1.0)), "mm", "Gaussian before the vote", bounds=LENGTHS),
    )

    def sample(self, rng: np.random.Generator, label: np.ndarray, spacing: Sequence[float], severity: float) -> Params:
        return self._start(
            steps=round(self._strength("steps", label, spacing, severity)),
            theta1=self._uniform("theta1", rng, label, spacing),
            theta2=self._uniform("theta2", rng, label, spacing),
            theta3=self._uniform("theta3", rng, label, spacing),
            smoothing=self._uniform("smoothing", rng, label, spacing),
            seed=self._seed(rng),
        )

    @classmethod
    def _margin(cls, spacing: Sequence[float], params: Params) -> float:
        """Where the walk usually ends; `_on_crop` looks further where it did not."""
        walk = params["steps"] * params["theta1"] * params["theta2"]
        return (walk + 4 * np.sqrt(walk)) * min(spacing) + 2 * max(spacing) + 2 * params["smoothing"]

    @classmethod
    def _on_crop(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> tuple[Box, np.ndarray] | None:
        """The crop grows until it holds the walk: how far a rough front gets is not known before."""
        tight = bounding_box(np.isin(label, params["labels"]))
        if tight is None or params["steps"] <= 0:
            return None
        margin, spare = cls._margin(spacing, params), max(spacing) + 2 * params["smoothing"]
        while True:
            box = grow_box(tight, label.shape, spacing, margin)
            walked = cls._apply(label[box], spacing, params)
            if not _leaves(walked, box, grow_box(tight, label.shape, spacing, margin - spare), params["labels"]):
                return box, _finish(walked, spacing, params)
            margin *= 2

    @classmethod
    def _apply(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
        return _walk(label, spacing, params, np.random.default_rng(params["seed"]))


def _finish(walked: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
    """What comes after the walk: flips and smoothing."""
    if params["theta3"] > 0:
        walked = _flip(walked, params, np.random.default_rng([params["seed"], 1]))
    return _vote(walked, spacing, params) if params["smoothing"] > 0 else walked


def _leaves(walked: np.ndarray, box: Box, inner: Box, labels: Sequence[int]) -> bool:
    """Whether structure of the crop `box` lies outside `inner`, a box within it."""
    outside = np.isin(walked, labels)
    outside[within(inner, box)] = False
    return bool(outside.any())


def _walk(label: np.ndarray, spacing: Sequence[float], params: Params, rng: np.random.Generator) -> np.ndarray:
    """The creeping border. Works on a padded flat copy; -1 marks what may not change."""
    values = np.where(np.isin(label, [0, *params["labels"]]), label, -1).astype(np.int32)
    padded = np.pad(values, 1, constant_values=-1)
    flat = padded.ravel()
    strides = [int(np.prod(padded.shape[axis + 1 :])) for axis in range(padded.ndim)]
    rates = [params["theta2"] * min(spacing) / step for step in spacing]
    faces = [(offset, rate) for stride, rate in zip(strides, rates, strict=True) for offset in (stride, -stride)]
    border = np.zeros(flat.size, dtype=bool)
    everything = np.flatnonzero(flat >= 0)
    border[everything] = _on_border(flat, everything, faces)
    for _ in range(params["steps"]):
        outwards = rng.random() < params["theta1"]
        where = np.flatnonzero(border)
        where = where[(flat[where] == 0) if outwards else (flat[where] > 0)]
        chance, touched = _chances(flat, where, faces, outwards)
        changed = rng.random(where.size) < chance
        where, touched = where[changed], touched[changed]
        flat[where] = touched if outwards else 0
        near = np.unique(np.concatenate([where, *(where + offset for offset, _ in faces)]))
        near = near[flat[near] >= 0]
        border[near] = _on_border(flat, near, faces)
    inner = tuple(slice(1, -1) for _ in padded.shape)
    walked = flat.reshape(padded.shape)[inner]
    return np.where(walked < 0, label, walked).astype(label.dtype)


def _on_border(flat: np.ndarray, where: np.ndarray, faces: Sequence[tuple[int, float]]) -> np.ndarray:
    """Whether background voxels touch a structure, and structure voxels background."""
    inside = flat[where] > 0
    found = np.zeros(where.size, dtype=bool)
    for offset, _ in faces:
        neighbour = flat[where + offset]
        found |= np.where(inside, neighbour == 0, neighbour > 0)
    return found


def _chances(
    flat: np.ndarray, where: np.ndarray, faces: Sequence[tuple[int, float]], outwards: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Probability to change (that of the fastest face that allows it) and the smallest label touched, for each
    voxel.
    """
    chance = np.zeros(where.size)
    touched = np.full(where.size, np.iinfo(flat.dtype).max, dtype=flat.dtype)
    for offset, rate in faces:
        neighbour = flat[where + offset]
        allows = neighbour > 0 if outwards else neighbour == 0
        chance = np.where(allows, np.maximum(chance, rate), chance)
        touched = np.where(allows & outwards, np.minimum(touched, neighbour), touched)
    return chance, touched


def _flip(label: np.ndarray, params: Params, rng: np.random.Generator) -> np.ndarray:
    """Structure voxels become background and background voxels the label of a random structure voxel of the case."""
    chosen = rng.random(label.shape, dtype=np.float32) < params["theta3"]
    present = np.array([value for value in params["labels"] if (label == value).any()] or params["labels"][:1])
    other = present[rng.integers(present.size, size=label.shape)]
    return np.where(chosen, np.where(label > 0, 0, other), label).astype(label.dtype)


def _vote(label: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
    """Blurs every label; foreground where their sum is above one half, there the strongest label."""
    from scipy.ndimage import gaussian_filter

    sigma = [params["smoothing"] / step for step in spacing]
    total = np.zeros(label.shape, dtype=np.float32)
    best = np.zeros(label.shape, dtype=np.float32)
    winner = np.zeros_like(label)
    for value in params["labels"]:
        share = gaussian_filter((label == value).astype(np.float32), sigma, truncate=3.0, mode="nearest")
        total += share
        winner[share > best] = value
        np.maximum(best, share, out=best)
    return np.where(total > 0.5, winner, 0)
