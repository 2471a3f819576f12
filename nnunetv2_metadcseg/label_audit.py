"""Label audit, the numbers: how far a given label can be relied on, where it looks wrong, and in which direction.

Knows arrays only (no torch, no nnU-Net). A *structure* is what the network decides about: a foreground label, or a
region of a region-based data set. The idea is that of `agreement.py`: a label that disagrees with the prediction on d
times its size, where right labels disagree on e times theirs, is d / e times more likely to be wrong there. Definitions
and evidence: docs/label_audit.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce

import numpy as np

BEST_SHARE = 0.2  # of the cases that agree best: their disagreement stands for that of right labels
MAX_OPTIMISM = 2.5  # trusted cases were trained on, so right labels of other cases disagree up to this much more
DOMINANT = 0.5  # share of the wrong voxels (or of their balance) that names the direction
PROPOSE_FROM = 0.5  # suspicion from which the proposed label is the prediction


@dataclass(frozen=True)
class Disagreement:
    """Label against prediction, weighed by the prediction's confidence.

    Attributes:
        extra, missing: sums of the confidence over voxels that only the label, or only the prediction, has (voxels).
        size: mean number of voxels of label and prediction. labelled: number of voxels of the label.
    """

    extra: float
    missing: float
    size: float
    labelled: int

    @property
    def rate(self) -> float:
        """Confident disagreement per voxel of the structure; 0 where neither has the structure."""
        return (self.extra + self.missing) / self.size if self.size > 0 else 0.0


@dataclass(frozen=True)
class ErrorDirection:
    """How the given label differs from the proposed one; lengths in the unit of the spacing (mm, or pixels).

    Attributes:
        kind: none, too large, too small, shifted, missing, extra or mixed.
        bias: mean signed distance of the label's surface from the proposal's, positive where the label is too large.
        shift: distance between the two centroids.
        distance: mean unsigned distance between the surfaces. Both means are over the surfaces' area.
        missing_parts, extra_parts: connected parts of the proposal, or of the label, that touch nothing of the other.

    The lengths are NaN where one of the two labels is empty.
    """

    kind: str
    bias: float
    shift: float
    distance: float
    missing_parts: int
    extra_parts: int

    def as_dict(self) -> dict:
        return asdict(self)


def disagreement(given: np.ndarray, probability: np.ndarray, valid: np.ndarray | None = None) -> Disagreement:
    """Confident disagreement of one region, which the network decides about by p > 1/2, with confidence |2 p - 1|.

    Args:
        given: (*S) bool, the structure in the given label. probability: (*S) of the structure, in [0, 1].
        valid: (*S) bool, False where ignored; None counts every voxel.
    """
    confidence = 2 * probability.astype(np.float32) - 1
    predicted = confidence > 0
    return _weighed(given, predicted, np.abs(confidence), valid)


def label_disagreements(
    given: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray,
    values: Sequence[int],
    valid: np.ndarray | None = None,
) -> list[Disagreement]:
    """Confident disagreement of each label alone, for labels that exclude each other.

    The prediction is the most probable label, as for the case and the proposal: with three classes or more it may be
    below 1/2. Its confidence for a label is |p - q|, q the probability of the best other class.

    Args:
        given, predicted: (*S) label values. probabilities: (K, *S), K at least 2, background first. values: the labels.
        valid: (*S) bool, False where ignored; None counts every voxel.
    """
    best = probabilities.max(0)
    found = []
    for value in values:
        own = predicted == value
        # Where another class wins, that is the best other one; where this label wins, it is the second best.
        rival = best.copy()
        others = (p[own] for head, p in enumerate(probabilities) if head != value)
        rival[own] = reduce(np.maximum, others)
        confidence = np.abs(probabilities[value].astype(np.float32) - rival)
        found.append(_weighed(given == value, own, confidence, valid))
    return found


def _weighed(
    given: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, valid: np.ndarray | None
) -> Disagreement:
    """Two masks, compared by the confidence where they differ."""
    if valid is not None:
        given, predicted = given & valid, predicted & valid
    extra = confidence[given & ~predicted].sum(dtype=np.float64)
    missing = confidence[predicted & ~given].sum(dtype=np.float64)
    labelled = int(given.sum())
    return Disagreement(float(extra), float(missing), (labelled + int(predicted.sum())) / 2, labelled)


def joint_disagreement(given: np.ndarray, predicted: np.ndarray, confidence: np.ndarray) -> Disagreement:
    """Confident disagreement of all labels of a case together, for labels that exclude each other.

    A voxel that was given another label's name counts once, as much as any other, not once per label: half of it as
    too much of the one, half as too little of the other.

    Args:
        given, predicted: (*S), 0 for background or ignored. confidence: (*S), by how much the predicted label is more
            probable than the given one (|2 p - 1| for one label); 0 where ignored.
    """
    structure, found = given > 0, predicted > 0
    united = _weighed(structure, found, confidence, None)
    renamed = float(confidence[structure & found & (given != predicted)].sum(dtype=np.float64))
    return replace(united, extra=united.extra + renamed / 2, missing=united.missing + renamed / 2)


def pooled(parts: Sequence[Disagreement]) -> Disagreement:
    """All structures of a case together, for regions, which overlap."""
    return Disagreement(*(sum(getattr(p, name) for p in parts) for name in ("extra", "missing", "size", "labelled")))


def with_usual_size(parts: Sequence[Disagreement]) -> list[Disagreement]:
    """One structure in all cases: where a label lacks it, its size is at least half the median of those that have it.

    That is the mean of no label and a prediction of usual size. Of a few stray voxels that the network predicts there,
    all disagree, as do all of a structure that was left out.
    """
    sizes = [part.labelled for part in parts if part.labelled > 0]
    least = float(np.median(sizes)) / 2 if sizes else 0.0
    return [part if part.labelled > 0 else replace(part, size=max(part.size, least)) for part in parts]


def telling(parts: Sequence[Disagreement]) -> np.ndarray:
    """The cases (N,) bool that tell how far right labels of one structure disagree: those whose label has it.

    Where there is none, nothing can disagree but stray voxels of the prediction. If no label has it, the cases whose
    prediction has it; else all.
    """
    labelled = np.array([part.labelled > 0 for part in parts], bool)
    if labelled.any():
        return labelled
    predicted = np.array([part.extra + part.missing > 0 for part in parts], bool)
    return predicted if predicted.any() else np.ones(len(parts), bool)


def expected_rate(rates: np.ndarray, trusted: np.ndarray, elsewhere: float = np.inf) -> float:
    """The disagreement rate of right labels, from the rates of all cases of a group that can tell (`telling`).

    The mean rate of the trusted cases, or that of the best agreeing cases if it is larger (up to `MAX_OPTIMISM` times:
    the network was trained on the trusted cases). Without trusted cases the best agreeing cases alone, up to
    `MAX_OPTIMISM` times `elsewhere`: all of them may be wrong.

    Args:
        rates: (N,). trusted: (N,) bool. elsewhere: mean rate of trusted cases of another group.

    Raises:
        ValueError: no case at all.
    """
    if len(rates) == 0:
        raise ValueError("No case to take the expected disagreement from, expected at least one.")
    others = rates[~trusted]
    best = float(np.quantile(others, BEST_SHARE)) if len(others) else 0.0
    if trusted.any():
        floor = float(rates[trusted].mean())
        best = min(max(best, floor), MAX_OPTIMISM * floor) if floor > 0 else best
    elif elsewhere > 0:
        best = min(best, MAX_OPTIMISM * elsewhere)
    return max(best, 1e-6)


def reliability(ratio: float | np.ndarray) -> float | np.ndarray:
    """1 / (1 + ratio): 1 where label and prediction agree, 1/2 where they disagree as right labels do, else below.

    Args:
        ratio: disagreement rate divided by that of right labels.
    """
    return 1.0 / (1.0 + ratio)


def wrong_probability(p_given: np.ndarray, ratio: float | np.ndarray) -> np.ndarray:
    """Probability that the given label, not the network, is wrong at a voxel: (1 - p) (1 - reliability).

    Args:
        p_given: (*S), predicted probability of what the given label says. ratio: see `reliability`; one, or (*S).

    Returns:
        (*S) float32 in [0, 1].
    """
    return (1 - np.clip(p_given.astype(np.float32), 0, 1)) * np.float32(1 - reliability(ratio))


def proposed_label(given: np.ndarray, predicted: np.ndarray, suspicion: np.ndarray) -> np.ndarray:
    """The prediction where the suspicion is at least `PROPOSE_FROM`, else the given label; all (*S)."""
    return np.where(suspicion >= PROPOSE_FROM, predicted, given).astype(given.dtype)


def error_direction(given: np.ndarray, proposed: np.ndarray, spacing: Sequence[float]) -> ErrorDirection:
    """Direction and size of the error of one structure.

    Args:
        given, proposed: (*S) bool, 2D or 3D; axes of length one are dropped. spacing: per axis of S.
    """
    spacing = [s for s, n in zip(spacing, given.shape, strict=True) if n > 1]
    given, proposed = np.squeeze(given), np.squeeze(proposed)
    wrong = int((given != proposed).sum())
    lost, gained = _unmatched(proposed, given), _unmatched(given, proposed)
    parts = {"missing_parts": lost[1], "extra_parts": gained[1]}
    if not given.any() or not proposed.any():
        kind = "none" if wrong == 0 else "extra" if given.any() else "missing"
        return ErrorDirection(kind, np.nan, np.nan, np.nan, **parts)
    bias, distance, per_voxel = _surface_distances(given, proposed, spacing)
    shift = float(np.linalg.norm((_centroid(given) - _centroid(proposed)) * np.asarray(spacing)))
    kind = _kind(wrong, lost[0], gained[0], given & ~proposed, proposed & ~given, shift, max(distance, per_voxel))
    return ErrorDirection(kind, bias, shift, distance, **parts)


def unit(spacing: Sequence[float], shape: Sequence[int], header: bool = True) -> str:
    """px where a spacing of 1 stands for none: in a flat image (PNG and such), and without a header; else mm.

    Args:
        header: the images have one that says their spacing (not TIFF).
    """
    real = [s for s, n in zip(spacing, shape, strict=True) if n > 1]
    return "px" if (len(real) < 3 or not header) and all(s == 1 for s in real) else "mm"


def _kind(
    wrong: int, lost: int, gained: int, over: np.ndarray, under: np.ndarray, shift: float, distance: float
) -> str:
    if wrong == 0:
        return "none"
    if max(lost, gained) >= DOMINANT * wrong:
        return "missing" if lost >= gained else "extra"
    balance = (int(over.sum()) - int(under.sum())) / wrong
    if abs(balance) >= DOMINANT:
        return "too large" if balance > 0 else "too small"
    # Under a pure shift no surface point is farther off than the shift; a wobble hardly moves the centroid.
    return "shifted" if shift >= distance else "mixed"


def _unmatched(mask: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """Voxels and number of the connected parts of `mask` that touch nothing of `other`."""
    import cc3d

    parts = cc3d.connected_components(mask.astype(np.uint8))
    count = np.bincount(parts.ravel(), minlength=int(parts.max()) + 1)
    touched = np.bincount(parts[other], minlength=len(count)) > 0
    alone = ~touched
    alone[0] = False
    return int(count[alone].sum()), int(alone.sum())


def _centroid(mask: np.ndarray) -> np.ndarray:
    return np.array([index.mean() for index in np.nonzero(mask)])


def _surface_distances(given: np.ndarray, proposed: np.ndarray, spacing: Sequence[float]) -> tuple[float, ...]:
    """Mean distances between the surfaces: signed (positive: label outside the proposal), unsigned, unsigned per voxel.

    The last counts surface voxels, the others weigh them by their surface: on thick slices most of them are at the top
    or the bottom of a structure, where the surfaces of label and proposal often agree.
    """
    box = _common_box(given | proposed)
    masks = [np.pad(m[box], 1) for m in (given, proposed)]
    fields = [_signed_distance(mask, spacing) for mask in masks]
    areas = [_exposed_area(mask, spacing) for mask in masks]
    # The label's surface in the proposal's field, and the proposal's surface inside the label: positive, too.
    sides = [(sign * fields[1 - i][areas[i] > 0], areas[i][areas[i] > 0]) for i, sign in ((0, 1), (1, -1))]
    signed = np.mean([np.average(d, weights=area) for d, area in sides])
    distance = np.mean([np.average(np.abs(d), weights=area) for d, area in sides])
    return float(signed), float(distance), float(np.mean([np.abs(d).mean() for d, _ in sides]))


def _exposed_area(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Surface of each voxel: of its faces that border on something else. The mask must not touch the edge."""
    area = np.zeros(mask.shape)
    for axis, own in enumerate(spacing):
        face = math.prod(spacing) / own
        for step in (1, -1):
            area[mask & ~np.roll(mask, step, axis)] += face
    return area


def _signed_distance(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """To the mask's outermost voxels in the unit of the spacing, positive outside."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing([float(s) for s in reversed(spacing)])
    return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, False, False, True)).astype(np.float64)


def _common_box(mask: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(int(index.min()), int(index.max()) + 1) for index in np.nonzero(mask))
