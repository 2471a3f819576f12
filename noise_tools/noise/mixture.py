"""Mixture: every object of a case gets its own noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from noise_tools.noise.base import Noise, Parameter, Params, Range
from noise_tools.noise.omission import objects

# Weight and steps (type, settings) of what an object may get; no steps: it stays clean.
Alternative = tuple[float, Sequence[tuple[str, Mapping[str, Range | str]]]]
DEFAULT: tuple[Alternative, ...] = tuple((1.0, [(name, {})]) for name in ("erosion", "dilation", "affine", "elastic"))


class Mixture(Noise):
    """Draws, for every connected component, one of several alternatives by weight, as if each object had its own
    annotator.

    An object's noise sees that object only: strengths that count typical radii follow its own size, it grows into
    background only, and where two objects grow into the same voxel the first one keeps it. Alternatives other than
    the default (erosion, dilation, affine, elastic) come from a recipe file or a preset.
    """

    name = "mixture"
    summary = "every component draws its own noise"
    source = "noise per annotated object, as in COCO-N (Kimhi, Grad et al., arXiv 2406.10891)"
    parameters = (
        Parameter("share", (0.5, 1.0), "share", "share of objects that draw at all", strength=True, bounds=(0, 1)),
    )

    def __init__(
        self,
        labels: Sequence[int],
        settings: Mapping[str, Range | str] | None = None,
        alternatives: Sequence[Alternative] = DEFAULT,
    ) -> None:
        super().__init__(labels, settings)
        from noise_tools import noise

        self._weights = np.array([weight for weight, _ in alternatives]) / sum(weight for weight, _ in alternatives)
        self._alternatives = [[(noise.load(kind), values) for kind, values in steps] for _, steps in alternatives]
        # Set up here to say now what is wrong with the settings.
        self._inner = [kind(self.labels, values) for steps in self._alternatives for kind, values in steps]

    @property
    def sets_strength(self) -> bool:
        """Whether the user gave a range for a strength parameter, of the mixture or of an alternative."""
        return super().sets_strength or any(inner.sets_strength for inner in self._inner)

    def sample(self, rng: np.random.Generator, label: np.ndarray, spacing: Sequence[float], severity: float) -> Params:
        share = self._strength("share", label, spacing, severity)
        source = np.random.default_rng(self._seed(rng))
        numbered, values = objects(label, self.labels)
        drawn = []
        for number, value in enumerate(values, start=1):
            luck, pick, seed = source.random(), source.choice(len(self._weights), p=self._weights), self._seed(source)
            if luck < share and self._alternatives[pick]:
                alone = _alone(label, numbered, number, value)
                steps = self._steps(pick, alone, value, spacing, severity, np.random.default_rng(seed))
                drawn.append({"object": number, "label": value, "steps": steps})
        return self._start(objects=drawn)

    def _steps(
        self,
        pick: int,
        alone: np.ndarray,
        value: int,
        spacing: Sequence[float],
        severity: float,
        rng: np.random.Generator,
    ) -> list[dict[str, Any]]:
        """Parameters of the steps of one object, each drawn for what the step before it left."""
        steps = []
        for kind, settings in self._alternatives[pick]:
            # Noise that renames needs all labels; noise that moves borders must see this object's label only.
            labels = self.labels if kind.name == "swap" else (value,)
            params = kind(labels, settings).sample(rng, alone, spacing, severity)
            alone = kind.apply(alone, spacing, params)
            steps.append({"type": kind.name, "params": params})
        return steps

    @classmethod
    def _box(cls, label: np.ndarray, spacing: Sequence[float], params: Params):
        return tuple(slice(0, size) for size in label.shape)

    @classmethod
    def _apply(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
        from noise_tools import noise

        noisy = label.copy()
        numbered, _ = objects(label, params["labels"])
        for item in params["objects"]:
            changed = alone = _alone(label, numbered, item["object"], item["label"])
            for step in item["steps"]:
                changed = noise.load(step["type"]).apply(changed, spacing, step["params"])
            grown = (alone == 0) & (changed > 0) & (noisy == 0)
            noisy = np.where((numbered == item["object"]) | grown, changed, noisy)
        return noisy


def _alone(label: np.ndarray, numbered: np.ndarray, number: int, value: int) -> np.ndarray:
    """The label map with one object; everything else that is labelled becomes -1, which no noise touches."""
    return np.where(numbered == number, value, np.where(label == 0, 0, -1)).astype(np.int32)
