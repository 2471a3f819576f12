"""Calibration: the boundaries that a network predicts are moved to where trusted labels have them.

A network that has learned many labels that are too large predicts structures too large. Trusted cases show by how much:
one offset per structure, added to its logit, makes predictions of trusted cases as large as their labels. Arrays only
(no torch, no nnU-Net). Definitions and evidence: docs/label_audit.md.

K heads (background is the first, unless the data set has regions), `*S` space, V voxels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

BOUND = 4.0  # of an offset, in logits: a probability of 1/2 becomes 0.98, or 0.02
SURE = 1 / (1 + np.exp(-2 * BOUND))  # offsets within the bound cannot turn a more probable decision
MOST_NUMBERS = 100_000_000  # of a case's probabilities that are looked at: large cases are thinned out
MOST_VOXELS = 50_000  # unsure voxels of a case that are kept
LEVEL = 0.1  # of the t test, two-sided: five cases often agree by chance (lab notebook, k)
ROUNDS = 3  # over all structures: moving one moves its neighbours


@dataclass(frozen=True)
class CaseSample:
    """What of a trusted case the offsets depend on.

    Attributes:
        logits: of unsure voxels, (K, V), up to a constant per voxel. label: of the same voxels, (K, V) bool.
        voxels: that each of them stands for.
        sure, hits: (K,) voxels that are predicted to belong to each head whatever the offsets, and rightly.
        given: (K,) voxels of the label.
    """

    logits: np.ndarray
    label: np.ndarray
    voxels: float
    sure: np.ndarray
    hits: np.ndarray
    given: np.ndarray


def spread_evenly(cases: list[str], number: int) -> list[str]:
    """At most `number` of the cases, evenly spread over the list."""
    if len(cases) <= number:
        return cases
    return [cases[i] for i in np.linspace(0, len(cases) - 1, number).round().astype(int)]


def sample(probabilities: np.ndarray, masks: Iterable[np.ndarray], valid: np.ndarray, regions: bool) -> CaseSample:
    """Takes from a trusted case what `fit_offsets` needs.

    Args:
        probabilities: (K, *S). masks: K times (*S) bool, the label as each head should have it. valid: (*S) bool, False
            where ignored. regions: heads are independent.

    Raises:
        ValueError: the label has another shape than the prediction.
    """
    if valid.shape != probabilities.shape[1:]:
        raise ValueError(
            f"The label has the shape {valid.shape}, expected that of the image, {probabilities.shape[1:]}; correct "
            "the label or the image in the raw data set and run nnUNetv2_preprocess."
        )
    step = max(1, -(-len(probabilities) * valid.size // MOST_NUMBERS))
    valid = valid.ravel()[::step]
    p = probabilities.reshape(len(probabilities), -1)[:, ::step][:, valid].astype(np.float32)
    certain = (np.abs(p - 0.5).min(0) if regions else p.max(0) - 0.5) >= SURE - 0.5
    unsure = np.flatnonzero(~certain)
    kept = unsure[:: max(1, -(-len(unsure) // MOST_VOXELS))]
    decided = p[:, certain] > 0.5 if regions else p[:, certain].argmax(0)
    sure, hits, given, label = [], [], [], []
    for head, mask in enumerate(masks):
        mask = mask.ravel()[::step][valid]
        own = decided[head] if regions else decided == head
        sure.append(own.sum())
        hits.append((own & mask[certain]).sum())
        given.append(mask.sum())
        label.append(mask[kept])
    voxels = len(unsure) / max(len(kept), 1)
    logits = to_logits(p[:, kept], regions)
    return CaseSample(logits, np.stack(label), voxels, np.array(sure), np.array(hits), np.array(given))


def to_logits(probabilities: np.ndarray, regions: bool) -> np.ndarray:
    """Logits of probabilities (K, ...), up to a constant per voxel for heads that exclude each other."""
    p = np.clip(probabilities, 1e-7, 1)
    return np.log(p) - np.log(np.clip(1 - probabilities, 1e-7, 1)) if regions else np.log(p)


def fit_offsets(cases: Sequence[CaseSample], regions: bool) -> np.ndarray:
    """Offsets (K,) that make predictions of trusted cases as large as their labels, as far as the cases agree.

    The lean of a structure is the mean, over cases whose label holds it, of (predicted - given) / mean of both, in
    voxels. Its offset brings the lean to zero, times 1 - (s / m)^2 with m the lean without offset and s its standard
    error (James and Stein 1961), but only where the cases differ from no lean in a t test (`LEVEL`). An offset that
    does not raise the mean Dice of these cases is dropped: what is too small on average because it is missed
    altogether here and there must not be made up for elsewhere.
    """
    heads = len(cases[0].given) if cases else 0
    offsets, sure = np.zeros(heads), np.zeros(heads)
    for head in range(0 if regions else 1, heads):
        sure[head] = _certainty(_Head(cases, offsets, head, regions).leans(0.0))
    for _ in range(1 if regions else ROUNDS):
        for head in np.flatnonzero(sure):
            offsets[head] = _Head(cases, offsets, head, regions).balanced()
    offsets *= sure
    for head in np.flatnonzero(offsets):
        structure = _Head(cases, offsets, head, regions)
        if structure.dice(offsets[head]) <= structure.dice(0.0):
            offsets[head] = 0.0
    return offsets


def mean_leans(cases: Sequence[CaseSample], regions: bool) -> np.ndarray:
    """Mean lean in volume of every head (K,) without offsets, see `fit_offsets`; 0 where no label holds it."""
    offsets = np.zeros(len(cases[0].given) if cases else 0)
    heads = [_Head(cases, offsets, head, regions) for head in range(len(offsets))]
    return np.array([head.leans(0.0).mean() if head.cases else 0.0 for head in heads])


def mean_dice(cases: Sequence[CaseSample], offsets: np.ndarray, regions: bool) -> np.ndarray:
    """Mean Dice of every head (K,) with offsets, over cases whose label holds it; 1 where none does."""
    heads = [_Head(cases, offsets, head, regions) for head in range(len(offsets))]
    return np.array([head.dice(offsets[head.head]) if head.cases else 1.0 for head in heads])


class _Head:
    """One structure in the cases whose label holds it, as a function of its offset, the others' as they are."""

    def __init__(self, cases: Sequence[CaseSample], offsets: np.ndarray, head: int, regions: bool) -> None:
        self.head = head
        self.cases = [case for case in cases if case.given[head] > 0]
        self.margins = [_margin(case.logits, offsets, head, regions) for case in self.cases]

    def leans(self, offset: float) -> np.ndarray:
        """Of every case."""
        sizes, _, given = self._counts(offset)
        return 2 * (sizes - given) / (sizes + given)

    def dice(self, offset: float) -> float:
        """Mean over the cases."""
        sizes, overlaps, given = self._counts(offset)
        return float((2 * overlaps / (sizes + given)).mean())

    def balanced(self) -> float:
        """The offset at which the mean lean changes its sign, by bisection."""
        low, high = -BOUND, BOUND
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (low, middle) if self.leans(middle).mean() > 0 else (middle, high)
        return (low + high) / 2

    def _counts(self, offset: float) -> np.ndarray:
        """Predicted, rightly predicted and labelled voxels of every case: three of (number of cases,)."""
        k, rows = self.head, []
        for case, margin in zip(self.cases, self.margins, strict=True):
            more = margin > -offset
            hits = case.hits[k] + case.voxels * (more & case.label[k]).sum()
            rows.append((case.sure[k] + case.voxels * more.sum(), hits, case.given[k]))
        return np.array(rows, float).reshape(-1, 3).T


def _margin(logits: np.ndarray, offsets: np.ndarray, head: int, regions: bool) -> np.ndarray:
    """How far a head leads at every voxel before its own offset: (V,)."""
    if regions:
        return logits[head]
    others = np.delete(logits + offsets[:, None].astype(np.float32), head, axis=0)
    return logits[head] - others.max(0)


def _certainty(leans: np.ndarray) -> float:
    """How far the cases agree on a lean: 1 - 1 / t^2, or 0 where it may be chance."""
    if len(leans) < 2 or leans.mean() == 0:
        return 0.0
    error = float(leans.std(ddof=1) / len(leans) ** 0.5 / abs(leans.mean()))  # 1 / t
    return 1 - error**2 if error * student.ppf(1 - LEVEL / 2, len(leans) - 1) < 1 else 0.0
