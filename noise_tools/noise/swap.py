"""Swap: structures that got the wrong label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from noise_tools.errors import NoiseToolsError
from noise_tools.noise.base import Noise, Parameter, Params
from noise_tools.noise.omission import objects


class Swap(Noise):
    """Connected components (or whole labels) take another declared label, each with probability `rate`.

    `confusion` says which: 'any' draws uniformly from the other labels; '1>2,2>3:0.5' lists pairs FROM>TO with relative
    weights (1 if not given), and labels without a pair keep their name.
    """

    name = "swap"
    summary = "components or labels take another label"
    source = (
        "class noise, e.g. COCO-N (Kimhi, Grad et al., arXiv 2406.10891); left-right and adjacent-structure mix-ups"
    )
    parameters = (
        Parameter("rate", (0.0, 1.0), "probability", "that a component is renamed", strength=True, bounds=(0, 1)),
        Parameter("of", "component", "", "what is renamed as a whole", choices=("component", "label")),
        Parameter("confusion", "any", "", "'any', or pairs FROM>TO[:WEIGHT] separated by commas"),
    )

    def __init__(self, labels, settings=None) -> None:
        super().__init__(labels, settings)
        if len(self.labels) < 2:
            raise NoiseToolsError(
                f"Noise type 'swap' needs two foreground labels or more, but there is {len(self.labels)}; leave it out."
            )
        self._confusion = _parse(self._choice("confusion"), self.labels)

    def sample(self, rng: np.random.Generator, label: np.ndarray, spacing: Sequence[float], severity: float) -> Params:
        return self._start(
            rate=self._strength("rate", label, spacing, severity),
            of=self._choice("of"),
            confusion=[[source, *pair] for source, pairs in self._confusion.items() for pair in pairs],
            seed=self._seed(rng),
        )

    @classmethod
    def _apply(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
        numbered, values = objects(label, params["labels"], whole_labels=params["of"] == "label")
        rng = np.random.default_rng(params["seed"])
        new = [0]
        for value in values:
            luck, pick = rng.random(2)
            pairs = [(target, weight) for source, target, weight in params["confusion"] if source == value]
            new.append(_draw(pairs, pick) if pairs and luck < params["rate"] else value)
        return np.where(numbered > 0, np.array(new)[numbered], label)


def _draw(pairs: Sequence[tuple[int, float]], pick: float) -> int:
    weights = np.cumsum([weight for _, weight in pairs])
    return pairs[int(np.searchsorted(weights, pick * weights[-1], side="right"))][0]


def _parse(text: str, labels: Sequence[int]) -> dict[int, list[tuple[int, float]]]:
    """Confusion pairs by source label."""
    if text == "any":
        return {source: [(target, 1.0) for target in labels if target != source] for source in labels}
    result: dict[int, list[tuple[int, float]]] = {}
    for item in str(text).split(","):
        pair, _, weight = item.partition(":")
        source, arrow, target = pair.partition(">")
        try:
            source, target, weight = int(source), int(target), float(weight or 1)
        except ValueError:
            arrow = ""
        if not arrow or source == target or not 0 < weight < np.inf:
            raise NoiseToolsError(
                f"Parameter swap.confusion has {item!r}; give pairs such as 1>2 or 1>2:0.5, or 'any'."
            )
        if source not in labels or target not in labels:
            raise NoiseToolsError(
                f"Parameter swap.confusion has {item!r}, but the labels are {list(labels)}; use those."
            )
        result.setdefault(source, []).append((target, weight))
    return result
