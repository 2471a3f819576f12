"""Dilation: the annotator strayed outside the structure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from noise_tools.geometry import label_boxes, signed_distance
from noise_tools.noise.base import LENGTHS, Noise, Parameter, Params


class Dilation(Noise):
    """Background within `radius` mm of a structure takes its label; where several reach, the nearest label wins.

    At equal distance the label declared first wins. Labelled voxels never change.
    """

    name = "dilation"
    summary = "grows structures by a distance; the nearest label wins"
    source = "classic label noise, e.g. Zhu et al. 2019 (Pick-and-Learn); MetaDCSeg (arXiv 2511.18894) names dilation"
    parameters = (
        Parameter("radius", (0.0, 1.5), "mm", "how far to grow", strength=True, relative=True, bounds=LENGTHS),
    )

    def sample(self, rng: np.random.Generator, label: np.ndarray, spacing: Sequence[float], severity: float) -> Params:
        return self._start(radius=self._strength("radius", label, spacing, severity))

    @classmethod
    def _margin(cls, spacing: Sequence[float], params: Params) -> float:
        return params["radius"] + max(spacing)

    @classmethod
    def _apply(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
        radius = params["radius"]
        if radius <= 0:
            return label
        noisy = label.copy()
        nearest = np.full(label.shape, -np.inf, dtype=np.float32)
        for value, box, mask in label_boxes(label, params["labels"], spacing, cls._margin(spacing, params)):
            distance = signed_distance(mask, spacing, "outside")
            wins = (label[box] == 0) & (distance >= -radius) & (distance > nearest[box])
            noisy[box][wins] = value
            nearest[box][wins] = distance[wins]
        return noisy
