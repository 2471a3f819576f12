"""Label audit, calibration (calibration.py) of the networks on the trusted cases.

Without it the audit of a network that has learned many labels that are too large would agree with the wrong labels and
find the right ones too small. The networks of different folds differ, so each has its own offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nnunetv2_metadcseg.calibration import CaseSample, fit_offsets, sample, spread_evenly

if TYPE_CHECKING:
    from nnunetv2_metadcseg.label_audit_predict import CasePrediction, Fold, Structure, TrainedModel

MOST_TRUSTED = 20  # cases that are looked at
NOTED_OFFSET = 0.5  # logits: worth a note


def calibrate(
    model: TrainedModel, names: Sequence[str], progress: Callable[[Iterable], Iterable] = iter
) -> dict[Fold, np.ndarray]:
    """Offsets per fold and head from (some of) the trusted cases among `names`; none where they are too few to tell."""
    trusted = [case for case in names if case in model.trusted]
    if len(trusted) < 2:
        return {}
    regions = model.label_manager.has_regions
    samples: dict[Fold, list[CaseSample]] = {fold: [] for fold in model.folds}
    for case in progress(spread_evenly(trusted, MOST_TRUSTED)):
        for fold in model.folds:
            prediction = model.predict(case, [fold], learned=False)
            samples[fold].append(case_sample(prediction, model.structures, regions))
    return {fold: fit_offsets(cases, regions) for fold, cases in samples.items()}


def case_sample(prediction: CasePrediction, structures: Sequence[Structure], regions: bool) -> CaseSample:
    """What the calibration needs of a trusted case."""
    given = prediction.given
    if regions:
        masks = (np.isin(given, s.values) for s in sorted(structures, key=lambda s: s.head))
    else:
        masks = (given == head for head in range(len(prediction.probabilities)))
    return sample(prediction.probabilities, masks, prediction.valid, regions)


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
