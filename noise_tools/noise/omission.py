"""Omission: structures the annotator missed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from noise_tools.geometry import bounding_box, components
from noise_tools.noise.base import Noise, Parameter, Params


class Omission(Noise):
    """Connected components (or whole labels) become background, each with probability `rate`.

    With `of` 'foreground' a component is one of all labels together, which goes with all of its parts: a lesion with
    its core, where labels are nested. Data sets with regions have that unless told otherwise.

    With `keep_one` the last component standing is kept, so that a case never loses all of its foreground.
    """

    name = "omission"
    summary = "whole components or labels go missing"
    source = "missed lesions; COCO-N deletes annotations likewise (Kimhi, Grad et al., arXiv 2406.10891)"
    parameters = (
        Parameter("rate", (0.0, 1.0), "probability", "that a component is missed", strength=True, bounds=(0, 1)),
        Parameter("of", "component", "", "what is missed as a whole", choices=("component", "label", "foreground")),
        Parameter("keep_one", "yes", "", "always keep one", choices=("yes", "no")),
    )

    def sample(self, rng: np.random.Generator, label: np.ndarray, spacing: Sequence[float], severity: float) -> Params:
        return self._start(
            rate=self._strength("rate", label, spacing, severity),
            of=self._choice("of"),
            keep_one=self._choice("keep_one"),
            seed=self._seed(rng),
        )

    @classmethod
    def _apply(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
        if params["of"] == "foreground":
            numbered, _ = components(np.isin(label, params["labels"]))
        else:
            numbered, _ = objects(label, params["labels"], whole_labels=params["of"] == "label")
        count = int(numbered.max(initial=0))
        luck = np.random.default_rng(params["seed"]).random(count)
        missed = luck < params["rate"]
        if params["keep_one"] == "yes" and count:
            missed[np.argmax(luck)] = False
        return np.where(np.concatenate([[False], missed])[numbered], 0, label)


def objects(label: np.ndarray, labels: Sequence[int], whole_labels: bool = False) -> tuple[np.ndarray, list[int]]:
    """Objects of a label map: its connected components per label, or its labels.

    Returns:
        Map of object numbers from 1 (0 where there is none), and the label value of each object.
    """
    numbered = np.zeros(label.shape, dtype=np.int32)
    values: list[int] = []
    for value in labels:
        mask = label == value
        box = bounding_box(mask)
        if box is None:
            continue
        mask = mask[box]
        parts, count = (mask.astype(np.int32), 1) if whole_labels else components(mask)
        numbered[box][mask] = parts[mask] + len(values)
        values += [value] * count
    return numbered, values
