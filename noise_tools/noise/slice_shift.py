"""Slice shift: slices whose annotation is misregistered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from noise_tools.noise.base import LENGTHS, Noise, Parameter, Params
from noise_tools.noise.slice_dropout import AXES, chosen_axis, labelled_slices


class SliceShift(Noise):
    """In a `share` of the slices with foreground the labels move within the slice by up to `shift` mm, each its own
    way.

    Every chosen slice moves by half to all of `shift` in a random direction, rounded to whole voxels; what leaves the
    image is cut. In 2D images rows are slices.
    """

    name = "slice_shift"
    summary = "slices shifted within their plane"
    source = "slice-wise misregistration; this project"
    parameters = (
        Parameter("shift", (0.0, 3.0), "mm", "largest shift", strength=True, relative=True, bounds=LENGTHS),
        Parameter("share", (0.5, 1.0), "share", "share of labelled slices that move", bounds=(0, 1)),
        Parameter("axis", "auto", "", "array axis the slices run along", choices=AXES),
    )

    def sample(self, rng: np.random.Generator, label: np.ndarray, spacing: Sequence[float], severity: float) -> Params:
        return self._start(
            shift=self._strength("shift", label, spacing, severity),
            share=self._uniform("share", rng, label, spacing),
            axis=chosen_axis(self._choice("axis"), spacing),
            seed=self._seed(rng),
        )

    @classmethod
    def _margin(cls, spacing: Sequence[float], params: Params) -> float:
        return params["shift"]

    @classmethod
    def _apply(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
        noisy = np.moveaxis(label.copy(), params["axis"], 0)
        plane = np.array([step for axis, step in enumerate(spacing) if axis != params["axis"]])
        rng = np.random.default_rng(params["seed"])
        for index in labelled_slices(noisy, params["labels"]):
            luck, length = rng.random(), rng.uniform(0.5, 1)
            way = rng.normal(size=plane.size)
            if luck < params["share"]:
                mm = params["shift"] * length * way / np.linalg.norm(way)
                noisy[index] = _shifted(noisy[index], np.rint(mm / plane).astype(int), params["labels"])
        return np.moveaxis(noisy, 0, params["axis"])


def _shifted(label: np.ndarray, steps: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """The foreground of one slice moved by whole voxels."""
    result = np.zeros_like(label)
    target, source = [], []
    for step, size in zip(steps.tolist(), label.shape, strict=True):
        target.append(slice(max(0, step), size + min(0, step)))
        source.append(slice(max(0, -step), size + min(0, -step)))
    if any(part.stop <= part.start for part in target):
        return result
    moved = label[tuple(source)]
    result[tuple(target)] = np.where(np.isin(moved, labels), moved, 0)
    return result
