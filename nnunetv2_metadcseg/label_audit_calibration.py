"""Label audit, calibration (calibration.py) of the networks on the trusted cases.

Without it the audit of a network that has learned many labels that are too large would agree with the wrong labels and
find the right ones too small. The networks of different folds differ, so each has its own offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nnunetv2_metadcseg.calibration import CaseSample, fit_offsets, mean_leans, sample, spread_evenly

if TYPE_CHECKING:
    from nnunetv2_metadcseg.label_audit_predict import CasePrediction, Fold, Structure, TrainedModel

MOST_TRUSTED = 20  # cases that are looked at
NOTED_SIZE = 0.1  # relative difference between predicted and labelled volume that is worth a note


class Offsets(dict["Fold", np.ndarray]):
    """Offsets (K,) per fold, empty where the trusted cases are too few to tell.

    Attributes:
        leans: mean leans (K,) of the trusted cases per fold, without the offsets.
    """

    def __init__(self, samples: dict[Fold, list[CaseSample]], regions: bool) -> None:
        super().__init__({fold: fit_offsets(cases, regions) for fold, cases in samples.items()})
        self.leans = {fold: mean_leans(cases, regions) for fold, cases in samples.items()}


def calibrate(model: TrainedModel, names: Sequence[str], progress: Callable[[Iterable], Iterable] = iter) -> Offsets:
    """Offsets per fold and head from (some of) the trusted cases among `names`; none where they are too few to tell.

    Raises:
        ValueError: the label of a case has another shape than its image.
    """
    trusted = [case for case in names if case in model.trusted]
    if len(trusted) < 2:
        return Offsets({}, False)
    regions = model.label_manager.has_regions
    samples: dict[Fold, list[CaseSample]] = {fold: [] for fold in model.folds}
    for case in progress(spread_evenly(trusted, MOST_TRUSTED)):
        for fold in model.folds:
            prediction = model.predict(case, [fold], learned=False)
            try:
                samples[fold].append(case_sample(prediction, model.structures, regions))
            except ValueError as error:
                raise ValueError(f"Case {case}: {error}") from error
    return Offsets(samples, regions)


def case_sample(prediction: CasePrediction, structures: Sequence[Structure], regions: bool) -> CaseSample:
    """What the calibration needs of a trusted case."""
    given = prediction.given
    if regions:
        masks = (np.isin(given, s.values) for s in sorted(structures, key=lambda s: s.head))
    else:
        masks = (given == head for head in range(len(prediction.probabilities)))
    return sample(prediction.probabilities, masks, prediction.valid, regions)


class StructureOffsets(dict[str, list[float]]):
    """The offsets of the structures that have any, a number per fold.

    Attributes:
        sizes: of the same structures, by how much of their labels' volume the predictions of the trusted cases were
            larger (negative: smaller) before the offsets, mean over folds.
    """

    def __init__(self, offsets: Offsets, structures: Sequence[Structure]) -> None:
        found = {s.name: [round(float(own[s.head]), 3) for own in offsets.values()] for s in structures}
        super().__init__({name: values for name, values in found.items() if any(values)})
        heads = {s.name: s.head for s in structures if s.name in self}
        self.sizes = {name: _relative_size([own[k] for own in offsets.leans.values()]) for name, k in heads.items()}


def _relative_size(leans: Sequence[float]) -> float:
    """Predicted by labelled volume less one, from leans, which are relative to the mean of both."""
    lean = float(np.mean(leans))
    return (2 + lean) / (2 - lean) - 1


def by_structure(offsets: Offsets, structures: Sequence[Structure]) -> StructureOffsets:
    """What the audit tells of the offsets."""
    return StructureOffsets(offsets, structures)


def lean_notes(offsets: StructureOffsets) -> list[str]:
    """What the calibration says of the labels as a whole.

    Offsets alone do not tell: where a network is unsure at the edges, a large one moves the boundary hardly at all.
    """
    notes = []
    for sign, prediction in ((1, "larger"), (-1, "smaller")):
        sizes = {name: size for name, size in offsets.sizes.items() if sign * size >= NOTED_SIZE}
        if sizes:
            percent = ", ".join(f"{100 * abs(size):.0f} %" for size in sizes.values())
            notes.append(
                f"Predictions of {', '.join(sizes)} were mostly {prediction} than the labels of the trusted cases (on "
                f"average by {percent}): either the given labels lean that way, or the network is undertrained. The "
                "audit has moved the boundary of its predictions to where trusted labels have it."
            )
    return notes
