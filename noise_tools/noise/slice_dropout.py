"""Slice dropout: slices the annotator skipped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from noise_tools.geometry import slice_axis
from noise_tools.noise.base import Noise, Parameter, Params

AXES = ("auto", "0", "1", "2")


class SliceDropout(Noise):
    """A `share` of the slices with foreground loses its labels; at least one keeps them.

    Slices run along `axis` ('auto': the largest spacing; in 2D images: rows). `pattern` 'random' drops single slices,
    'end' a block from one end of the structure.
    """

    name = "slice_dropout"
    summary = "slices without annotation"
    source = "incomplete annotation of volumes; this project"
    parameters = (
        Parameter("share", (0.0, 1.0), "share", "share of labelled slices to clear", strength=True, bounds=(0, 1)),
        Parameter("pattern", "random", "", "single slices or a block at one end", choices=("random", "end")),
        Parameter("axis", "auto", "", "array axis the slices run along", choices=AXES),
    )

    def sample(self, rng: np.random.Generator, label: np.ndarray, spacing: Sequence[float], severity: float) -> Params:
        return self._start(
            share=self._strength("share", label, spacing, severity),
            pattern=self._choice("pattern"),
            axis=chosen_axis(self._choice("axis"), spacing),
            seed=self._seed(rng),
        )

    @classmethod
    def _apply(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
        noisy = np.moveaxis(label.copy(), params["axis"], 0)
        filled = labelled_slices(noisy, params["labels"])
        rng = np.random.default_rng(params["seed"])
        order = rng.permutation(filled)
        if params["pattern"] == "end":
            order = filled if rng.random() < 0.5 else filled[::-1]
        count = min(round(params["share"] * filled.size), max(0, filled.size - 1))
        noisy[np.sort(order[:count])] = 0
        return np.moveaxis(noisy, 0, params["axis"])


def chosen_axis(choice: str, spacing: Sequence[float]) -> int:
    """Array axis for a choice of `AXES`; an axis that the image does not have falls back to 'auto'."""
    if choice == "auto" or int(choice) >= len(spacing):
        return slice_axis(spacing)
    return int(choice)


def labelled_slices(label: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Indices along axis 0 that hold any of `labels`."""
    return np.flatnonzero(np.isin(label, labels).any(axis=tuple(range(1, label.ndim))))
