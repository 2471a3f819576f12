"""Erosion: the annotator stayed inside the structure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from noise_tools.geometry import bounding_box, grow_box, signed_distance
from noise_tools.noise.base import LENGTHS, Noise, Parameter, Params


class Erosion(Noise):
    """Removes voxels whose signed distance to the surface is at most `radius` mm; they become background.

    `scope` tells which surface: that of every label (touching labels part), or that of the whole foreground (touching
    labels stay in contact).
    """

    name = "erosion"
    summary = "shrinks structures by a distance"
    source = "classic label noise, e.g. Zhu et al. 2019 (Pick-and-Learn); MetaDCSeg (arXiv 2511.18894) names erosion"
    parameters = (
        Parameter("radius", (0.0, 1.5), "mm", "how deep to erode", strength=True, relative=True, bounds=LENGTHS),
        Parameter("scope", "label", "", "erode each label or the foreground as one", choices=("label", "foreground")),
    )

    def sample(self, rng: np.random.Generator, label: np.ndarray, spacing: Sequence[float], severity: float) -> Params:
        return self._start(
            radius=self._strength("radius", label, spacing, severity),
            scope=self._choice("scope"),
        )

    @classmethod
    def _apply(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
        if params["radius"] <= 0:
            return label
        noisy = label.copy()
        groups = [params["labels"]] if params["scope"] == "foreground" else [[value] for value in params["labels"]]
        for group in groups:
            _erode(label, noisy, group, spacing, params["radius"])
        return noisy


def _erode(label: np.ndarray, noisy: np.ndarray, group: Sequence[int], spacing: Sequence[float], radius: float) -> None:
    mask = np.isin(label, group)
    box = bounding_box(mask)
    if box is None:
        return
    box = grow_box(box, label.shape, spacing, 0.0)
    mask = mask[box]
    noisy[box][mask & (signed_distance(mask, spacing, "inside") <= radius)] = 0
