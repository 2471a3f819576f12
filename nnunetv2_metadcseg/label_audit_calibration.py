"""Label audit, calibration (calibration.py) of the networks on the trusted cases.

Without it the audit of a network that has learned many labels that are too large would agree with the wrong labels and
find the right ones too small. The networks of different folds differ, so each has its own offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from nnunetv2_metadcseg.calibration import CaseSample, fit_offsets, mean_dice, mean_leans, sample, spread_evenly

if TYPE_CHECKING:
    from nnunetv2_metadcseg.label_audit_predict import CasePrediction, Fold, Structure, TrainedModel

MOST_TRUSTED = 20  # cases that are looked at
NOTED_SIZE = 0.1  # relative difference between predicted and labelled volume that is worth a note
# A network has not learned a structure whose volume it predicts twice as large, or next to nothing of it, and elsewhere
# (Dice) even with offsets, which mend what is only too large or too small.
MOST_SIZE, LEAST_SIZE, LEAST_DICE = 1.0, -0.95, 0.5


@dataclass(frozen=True)
class Calibration:
    """What the trusted cases say of the networks; empty where they are too few to tell.

    Attributes:
        offsets: (K,) per fold. leans: mean leans (K,) of the trusted cases per fold, without the offsets.
        dice: their mean Dice (K,) per fold, with the offsets.
    """

    offsets: dict[Fold, np.ndarray] = field(default_factory=dict)
    leans: dict[Fold, np.ndarray] = field(default_factory=dict)
    dice: dict[Fold, np.ndarray] = field(default_factory=dict)


def calibrate(
    model: TrainedModel, names: Sequence[str], progress: Callable[[Iterable], Iterable] = iter
) -> Calibration:
    """Offsets per fold and head from (some of) the trusted cases among `names`; none where they are too few to tell.

    Raises:
        ValueError: the label of a case has another shape than its image.
    """
    trusted = [case for case in names if case in model.trusted]
    if len(trusted) < 2:
        return Calibration()
    regions = model.label_manager.has_regions
    samples: dict[Fold, list[CaseSample]] = {fold: [] for fold in model.folds}
    for case in progress(spread_evenly(trusted, MOST_TRUSTED)):
        for fold in model.folds:
            prediction = model.predict(case, [fold], learned=False)
            try:
                samples[fold].append(case_sample(prediction, model.structures, regions))
            except ValueError as error:
                raise ValueError(f"Case {case}: {error}") from error
    offsets = {fold: fit_offsets(cases, regions) for fold, cases in samples.items()}
    return Calibration(
        offsets,
        {fold: mean_leans(cases, regions) for fold, cases in samples.items()},
        {fold: mean_dice(cases, offsets[fold], regions) for fold, cases in samples.items()},
    )


def case_sample(prediction: CasePrediction, structures: Sequence[Structure], regions: bool) -> CaseSample:
    """What the calibration needs of a trusted case."""
    given = prediction.given
    if regions:
        masks = (np.isin(given, s.values) for s in sorted(structures, key=lambda s: s.head))
    else:
        masks = (given == head for head in range(len(prediction.probabilities)))
    return sample(prediction.probabilities, masks, prediction.valid, regions)


def by_structure(calibration: Calibration, structures: Sequence[Structure]) -> dict[str, list[float]]:
    """The offsets of the structures that have any, a number per fold."""
    found = {s.name: [round(float(own[s.head]), 3) for own in calibration.offsets.values()] for s in structures}
    return {name: values for name, values in found.items() if any(values)}


def size_errors(calibration: Calibration, structures: Sequence[Structure]) -> dict[str, float]:
    """By how much predictions of the trusted cases were larger than their labels (negative: smaller), without offsets.

    A share of the labels' volume, mean over folds, of the structures that have offsets.
    """
    moved = by_structure(calibration, structures)
    return {name: size for name, size in _sizes(calibration, structures).items() if name in moved}


def not_learned(calibration: Calibration, structures: Sequence[Structure]) -> dict[str, float]:
    """The same of the structures that the networks do not segment yet, with or without offsets."""
    dice = {s.name: np.mean([own[s.head] for own in calibration.dice.values()] or [1.0]) for s in structures}
    sizes = _sizes(calibration, structures)
    return {n: size for n, size in sizes.items() if dice[n] < LEAST_DICE and not LEAST_SIZE < size < MOST_SIZE}


def _sizes(calibration: Calibration, structures: Sequence[Structure]) -> dict[str, float]:
    leans = calibration.leans.values()
    return {s.name: _relative_size([own[s.head] for own in leans]) for s in structures} if leans else {}


def _relative_size(leans: Sequence[float]) -> float:
    """Predicted by labelled volume less one, from leans, which are relative to the mean of both."""
    lean = float(np.mean(leans))
    return (2 + lean) / (2 - lean) - 1


def calibration_notes(calibration: Calibration, structures: Sequence[Structure]) -> list[str]:
    """What the calibration says of the labels as a whole, and of what the networks have not learned.

    Offsets alone do not tell: where a network is unsure at the edges, a large one moves the boundary hardly at all.
    """
    strange = not_learned(calibration, structures)
    errors = {name: size for name, size in size_errors(calibration, structures).items() if name not in strange}
    notes = [
        f"The network does not segment {name} yet: in the trusted cases it predicts "
        + (f"{1 + size:.1f} times the labelled volume, mostly elsewhere" if size > 0 else "next to nothing of it")
        + ". The audit is worth nothing for it; train longer."
        for name, size in strange.items()
    ]
    for sign, prediction in ((1, "larger"), (-1, "smaller")):
        sizes = {name: size for name, size in errors.items() if sign * size >= NOTED_SIZE}
        if sizes:
            percent = ", ".join(f"{100 * abs(size):.0f} %" for size in sizes.values())
            notes.append(
                f"Predictions of {', '.join(sizes)} were mostly {prediction} than the labels of the trusted cases (on "
                f"average by {percent}): either the given labels lean that way, or the network is undertrained. The "
                "audit has moved the boundary of its predictions to where trusted labels have it."
            )
    return notes
