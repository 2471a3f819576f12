"""Label audit, what is found: the disagreement of a case and its labels, and what all cases together say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnunetv2_metadcseg.label_audit import (
    Disagreement,
    ErrorDirection,
    disagreement,
    joint_disagreement,
    label_disagreements,
    pooled,
    reliability,
)
from nnunetv2_metadcseg.label_audit_balance import Record
from nnunetv2_metadcseg.label_audit_predict import CasePrediction, Structure


@dataclass
class LabelFinding:
    """One structure of one case."""

    name: str
    rate: float
    reliability: float
    direction: ErrorDirection


@dataclass
class CaseFinding:
    """One case.

    Attributes:
        whole: its labels together. ratio: its disagreement divided by that of right labels.
        belief: the trainer's mean alpha of the case where its label and the teacher disagree, or None.
        record: the label's disagreement during training by that expected of a right label, or None.
    """

    case: str
    out_of_fold: bool
    trusted: bool
    parts: dict[str, Disagreement]
    whole: Disagreement
    belief: float | None
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    record: Record | None = None
    ratio: float = float("nan")
    suspicious_voxels: int = 0
    labels: list[LabelFinding] = field(default_factory=list)
    rank: int = 0

    @property
    def rate(self) -> float:
        return self.whole.rate

    @property
    def reliability(self) -> float:
        return reliability(self.ratio)

    @property
    def direction(self) -> str:
        """That of the least reliable structure that differs at all."""
        wrong = [label for label in self.labels if label.direction.kind != "none"]
        return min(wrong, key=lambda label: label.reliability).direction.kind if wrong else "none"


@dataclass
class Audit:
    """All findings, the least reliable case first, and how they were made."""

    findings: list[CaseFinding]
    about: dict[str, Any]


def measure(case: str, prediction: CasePrediction, structures: Sequence[Structure], trusted: bool) -> CaseFinding:
    """Disagreement of every structure of a case."""
    parts = _parts(prediction, structures)
    spacing = tuple(float(s) for s in prediction.properties["spacing"])
    whole = _whole(prediction, structures, parts)
    shape = prediction.given.shape
    known = prediction.belief, shape, spacing, prediction.record
    return CaseFinding(case, prediction.out_of_fold, trusted, parts, whole, *known)


def _are_regions(prediction: CasePrediction, structures: Sequence[Structure]) -> bool:
    return len(prediction.probabilities) == len(structures)  # no background among the heads


def _parts(prediction: CasePrediction, structures: Sequence[Structure]) -> dict[str, Disagreement]:
    given, probabilities, valid = prediction.given, prediction.probabilities, prediction.valid
    if _are_regions(prediction, structures):
        return {s.name: disagreement(np.isin(given, s.values), probabilities[s.head], valid) for s in structures}
    values = [s.head for s in structures]  # the head of a label is its value
    found = label_disagreements(given, prediction.predicted, probabilities, values, valid)
    return {s.name: part for s, part in zip(structures, found, strict=True)}


def _whole(prediction: CasePrediction, structures: Sequence[Structure], parts: dict[str, Disagreement]) -> Disagreement:
    if _are_regions(prediction, structures):
        return pooled(list(parts.values()))
    p = probability_of_given(prediction, structures, regions=False)
    confidence = np.where(prediction.valid, prediction.probabilities.max(0) - p, 0)
    given, predicted = (np.where(prediction.valid, m, 0) for m in (prediction.given, prediction.predicted))
    return joint_disagreement(given, predicted, confidence)


def probability_of_given(prediction: CasePrediction, structures: Sequence[Structure], regions: bool) -> np.ndarray:
    """Predicted probability of what the given label says: (*S) float32; one where ignored.

    For regions that of the least likely decision.
    """
    probabilities = prediction.probabilities
    if regions:
        p = np.ones(prediction.given.shape, np.float32)
        for s in structures:
            inside = np.isin(prediction.given, s.values)
            p = np.minimum(p, np.where(inside, probabilities[s.head], 1 - probabilities[s.head]))
    else:
        known = np.clip(prediction.given, 0, len(probabilities) - 1).astype(np.int64)
        p = np.take_along_axis(probabilities, known[None], 0)[0].astype(np.float32)
    return np.where(prediction.valid, p, 1)
