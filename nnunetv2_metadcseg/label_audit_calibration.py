"""Label audit, calibration: every network's boundaries are moved to where trusted labels have them.

A network that has learned many labels that are too large predicts structures too large, so it agrees with the wrong
labels and finds the right ones too small. Trusted cases show by how much: one offset per structure, added to its logit,
makes predictions of trusted cases as large as their labels. The networks of different folds differ, so each has its
own. Definitions and evidence: docs/label_audit.md.

K heads (background is the first, unless the data set has regions), `*S` space, V voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from nnunetv2_metadcseg.label_audit_predict import CasePrediction, Fold, Structure, TrainedModel

BOUND = 4.0  # of an offset, in logits: a probability of 1/2 becomes 0.98, or 0.02
SURE = 1 / (1 + np.exp(-2 * BOUND))  # offsets within the bound cannot turn a more probable decision
MOST_VOXELS = 50_000  # unsure voxels of a case that are looked at
ROUNDS = 3  # over all structures: moving one moves its neighbours
MOST_TRUSTED = 20  # cases that are looked at
NOTED_OFFSET = 0.5  # logits: worth a note


@dataclass(frozen=True)
class CaseSample:
    """What of a trusted case the offsets depend on.

    Attributes:
        logits: of unsure voxels, (K, V), up to a constant per voxel. voxels: that each of them stands for.
        sure: (K,) voxels that are predicted to belong to each head whatever the offsets.
        given: (K,) voxels of the given label.
    """

    logits: np.ndarray
    voxels: float
    sure: np.ndarray
    given: np.ndarray


def sample(probabilities: np.ndarray, given: np.ndarray, valid: np.ndarray, regions: bool) -> CaseSample:
    """Takes from a trusted case what `fit_offsets` needs.

    Args:
        probabilities: (K, *S). given: (K,) voxels of the given label, without ignored ones. valid: (*S) bool, False
            where ignored. regions: heads are independent.
    """
    p = probabilities[:, valid].astype(np.float32)
    certain = (np.abs(p - 0.5).min(0) if regions else p.max(0) - 0.5) >= SURE - 0.5
    logits = to_logits(p[:, ~certain], regions)
    kept = logits[:, :: max(1, -(-logits.shape[1] // MOST_VOXELS))]
    voxels = logits.shape[1] / max(kept.shape[1], 1)
    return CaseSample(kept, voxels, _sizes(p[:, certain], regions), given)


def fit_offsets(cases: Sequence[CaseSample], regions: bool) -> np.ndarray:
    """Offsets (K,) that make predictions of trusted cases as large as their labels, as far as the cases agree.

    The lean of a structure is the mean, over cases whose label holds it, of (predicted - given) / mean of both, in
    voxels. Its offset brings the lean to zero, times 1 - (s / m)^2 with m the lean without offset and s its standard
    error, or no offset if that is negative (James and Stein 1961), or with less than two such cases.
    """
    heads = len(cases[0].given) if cases else 0
    offsets, sure = np.zeros(heads), np.zeros(heads)
    for head in range(0 if regions else 1, heads):
        sure[head] = _certainty(_leans(cases, offsets, head, regions)(0.0))
    for _ in range(1 if regions else ROUNDS):
        for head in np.flatnonzero(sure):
            offsets[head] = _root(_leans(cases, offsets, head, regions))
    return offsets * sure


def to_logits(probabilities: np.ndarray, regions: bool) -> np.ndarray:
    """Logits of probabilities (K, ...), up to a constant per voxel for heads that exclude each other."""
    p = np.clip(probabilities, 1e-7, 1)
    return np.log(p) - np.log(np.clip(1 - probabilities, 1e-7, 1)) if regions else np.log(p)


def _sizes(probabilities: np.ndarray, regions: bool) -> np.ndarray:
    """Voxels (K,) that probabilities (K, V) decide for each head."""
    if regions:
        return (probabilities > 0.5).sum(1)
    return np.bincount(probabilities.argmax(0), minlength=len(probabilities))


def _leans(cases: Sequence[CaseSample], offsets: np.ndarray, head: int, regions: bool):
    """A function from the offset of a head, the others' as they are, to the leans of the cases that hold it."""
    known = [(_margin(case.logits, offsets, head, regions), case) for case in cases if case.given[head] > 0]

    def leans(offset: float) -> np.ndarray:
        sizes = [(case.sure[head] + case.voxels * (m > -offset).sum(), case.given[head]) for m, case in known]
        return np.array([2 * (predicted - given) / (predicted + given) for predicted, given in sizes])

    return leans


def _margin(logits: np.ndarray, offsets: np.ndarray, head: int, regions: bool) -> np.ndarray:
    """How far a head leads at every voxel before its own offset: (V,)."""
    if regions:
        return logits[head]
    others = np.delete(logits + offsets[:, None].astype(np.float32), head, axis=0)
    return logits[head] - others.max(0)


def _certainty(leans: np.ndarray) -> float:
    if len(leans) < 2 or leans.mean() == 0:
        return 0.0
    error = leans.std(ddof=1) / len(leans) ** 0.5
    return max(0.0, 1 - float(error / leans.mean()) ** 2)


def _root(leans) -> float:
    """The offset at which the mean lean changes its sign, by bisection."""
    low, high = -BOUND, BOUND
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if leans(middle).mean() > 0 else (middle, high)
    return (low + high) / 2


# ---- in the audit ---------------------------------------------------------------------------------------------------


def calibrate(
    model: TrainedModel, names: Sequence[str], progress: Callable[[Iterable], Iterable] = iter
) -> dict[Fold, np.ndarray]:
    """Offsets per fold and head from (some of) the trusted cases among `names`; none where they are too few to tell."""
    trusted = [case for case in names if case in model.trusted]
    if len(trusted) < 2:
        return {}
    chosen = trusted[:: -(-len(trusted) // MOST_TRUSTED)]
    regions = model.label_manager.has_regions
    samples: dict[Fold, list[CaseSample]] = {fold: [] for fold in model.folds}
    for case in progress(chosen):
        for fold in model.folds:
            samples[fold].append(case_sample(model.predict(case, [fold]), model.structures, regions))
    return {fold: fit_offsets(cases, regions) for fold, cases in samples.items()}


def case_sample(prediction: CasePrediction, structures: Sequence[Structure], regions: bool) -> CaseSample:
    """What the calibration needs of a trusted case."""
    given = np.zeros(len(prediction.probabilities))
    for s in structures:
        given[s.head] = (np.isin(prediction.given, s.values) & prediction.valid).sum()
    return sample(prediction.probabilities, given, prediction.valid, regions)


def by_structure(offsets: dict[Fold, np.ndarray], structures: Sequence[Structure]) -> dict[str, list[float]]:
    """The offsets of the structures that have any, a number per fold."""
    found = {s.name: [round(float(own[s.head]), 3) for own in offsets.values()] for s in structures}
    return {name: values for name, values in found.items() if any(values)}


def lean_notes(offsets: dict[str, list[float]]) -> list[str]:
    """What the calibration says of the labels as a whole; offsets: see `by_structure`."""
    notes = []
    for sign, prediction, label in ((-1, "larger", "large"), (1, "smaller", "small")):
        names = [name for name, values in offsets.items() if sign * np.mean(values) >= NOTED_OFFSET]
        if names:
            notes.append(
                f"Predictions of {', '.join(names)} were mostly {prediction} than the trusted labels, so the labels "
                f"that the model learned from are probably too {label} on the whole; the audit has moved the boundary "
                "of its predictions to where trusted labels have it."
            )
    return notes
