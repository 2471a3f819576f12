"""Elastic: the contour wobbles in and out, as between two careful annotators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from noise_tools.geometry import Box, bounding_box, grow_box, signed_distance, smooth_field
from noise_tools.noise.base import LENGTHS, Noise, Parameter, Params


class Elastic(Noise):
    """Adds a smooth random field to the signed distance of the foreground; the new contour is where the sum is zero.

    Borders between touching labels get fields of their own: within the new foreground the label with the largest sum
    wins, which for a field of zero is the nearest label.
    """

    name = "elastic"
    summary = "smooth wobble of the contour in and out"
    source = "this project; smooth random fields on signed distances, as in models of observer variability"
    parameters = (
        Parameter("amplitude", (0.0, 1.5), "mm", "standard deviation of the wobble", True, True, (), LENGTHS),
        Parameter("length", (0.8, 1.6), "mm", "correlation length along the contour", False, True, (), LENGTHS),
    )

    def sample(self, rng: np.random.Generator, label: np.ndarray, spacing: Sequence[float], severity: float) -> Params:
        return self._start(
            amplitude=self._strength("amplitude", label, spacing, severity),
            length=self._uniform("length", rng, label, spacing),
            seed=self._seed(rng),
        )

    @classmethod
    def _box(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> Box | None:
        # The fields belong to the image: in a crop, which grows with the amplitude, a stronger wobble were another one.
        return tuple(slice(0, size) for size in label.shape)

    @classmethod
    def _apply(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
        box = bounding_box(np.isin(label, params["labels"]))
        if box is None or params["amplitude"] <= 0:
            return label
        box = grow_box(box, label.shape, spacing, 3 * params["amplitude"])
        noisy = label.copy()
        noisy[box] = _wobbled(label[box], box, label.shape, spacing, params)
        return noisy


def _wobbled(
    label: np.ndarray, place: Box, shape: Sequence[int], spacing: Sequence[float], params: Params
) -> np.ndarray:
    """The part `label` of an image of this `shape` that lies at `place`, with its contours moved."""
    amplitude = params["amplitude"]
    rng = np.random.default_rng(params["seed"])

    def moved(mask: np.ndarray, box: Box) -> np.ndarray:
        part = tuple(slice(at.start + edge.start, at.start + edge.stop) for at, edge in zip(place, box, strict=True))
        field = np.clip(smooth_field(rng, shape, spacing, params["length"], part), -3, 3)
        return signed_distance(mask, spacing) + amplitude * field

    whole = tuple(slice(0, size) for size in label.shape)
    inside = moved(np.isin(label, params["labels"]), whole) > 0
    present = [value for value in params["labels"] if (label == value).any()]
    if len(present) == 1:
        return np.where(inside, present[0], 0)
    best = np.full(label.shape, -np.inf, dtype=np.float32)
    winner = np.zeros_like(label)
    for value in present:
        mask = label == value
        # Beyond this box the label's sum is below zero: others win there.
        box = grow_box(bounding_box(mask), label.shape, spacing, 3 * amplitude)
        score = moved(mask[box], box)
        better = score > best[box]
        best[box][better] = score[better]
        winner[box][better] = value
    return np.where(inside, winner, 0)
