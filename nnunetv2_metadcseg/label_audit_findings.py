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
    unit,
)
from nnunetv2_metadcseg.label_audit_balance import Record
from nnunetv2_metadcseg.label_audit_decision import beyond_chance
from nnunetv2_metadcseg.label_audit_predict import CasePrediction, Structure

HEADERS = ("sitk_stuff", "nibabel_stuff")  # what nnU-Net's readers keep of one; those of PNG and TIFF keep none


@dataclass
class LabelFinding:
    """One structure of one case; ratio: its disagreement divided by that of right labels."""

    name: str
    rate: float
    ratio: float
    direction: ErrorDirection

    @property
    def reliability(self) -> float:
        return reliability(self.ratio)


@dataclass
class CaseFinding:
    """One case.

    Attributes:
        spacing: per axis of the shape. header: the image's header says it.
        whole: its labels together. whole_ratio: their disagreement divided by that of right labels.
        ratio: that, or a label's where it is more (label_audit_decision.py). decided_by: that label, else empty.
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
    header: bool = True
    whole_ratio: float = float("nan")
    ratio: float = float("nan")
    decided_by: str = ""
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
    def unit(self) -> str:
        """Of all lengths."""
        return unit(self.spacing, self.shape, self.header)

    @property
    def worst(self) -> LabelFinding:
        """Of the structures that differ at all the one that decided, or else the least reliable."""
        return min(self.labels, key=lambda x: (x.direction.kind == "none", x.name != self.decided_by, x.reliability))

    @property
    def direction(self) -> str:
        return self.worst.direction.kind


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
    header = any(name in prediction.properties for name in HEADERS)
    known = prediction.belief, shape, spacing, prediction.record, header
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


def voxel_ratios(
    finding: CaseFinding, given: np.ndarray, predicted: np.ndarray, structures: Sequence[Structure], regions: bool
) -> float | np.ndarray:
    """Ratio of the label in question at each voxel (*S): the largest of those that it is given or predicted as.

    For regions, which overlap, of those that label and prediction decide otherwise about. Beyond chance, and at least
    that of all labels together; not that of a label that decided for the case, or its neighbours would look wrong, too.
    """
    if len(structures) == 1:
        return finding.whole_ratio
    found = np.full(given.shape, finding.whole_ratio, np.float32)
    for label, structure in zip(finding.labels, structures, strict=True):
        inside, expected = (np.isin(m, structure.values) for m in (given, predicted))
        asked = inside != expected if regions else inside | expected
        np.maximum(found, np.float32(beyond_chance(label.ratio, len(structures))), out=found, where=asked)
    return found
