"""Every network of an audit has its own offsets, and the page says what they mean."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from nnunetv2_metadcseg.label_audit_calibration import (
    Calibration,
    by_structure,
    calibrate,
    case_sample,
    lean_notes,
    size_errors,
)
from nnunetv2_metadcseg.label_audit_predict import CasePrediction, Structure
from tests.nnunetv2_metadcseg.ramps import line, ramp


class TwoFolds:
    """Fold 0 predicts the structure three voxels too long, fold 1 three too short."""

    folds, structures = (0, 1), [Structure("organ", (1,), 1)]
    label_manager = SimpleNamespace(has_regions=False)
    lengths = {"a": 100, "b": 110, "doubtful": 300}

    def __init__(self, trusted: list[str]) -> None:
        self.trusted = trusted

    def predict(self, case, folds, learned):
        edge = self.lengths[case] + (3 if folds == [0] else -3)
        p = np.stack([1 - ramp(edge), ramp(edge)])
        given = line(self.lengths[case]).astype(np.int16)
        return CasePrediction(given, given, p, np.ones(given.shape, bool), {}, True)


def test_every_fold_has_its_own_offsets():
    offsets = calibrate(TwoFolds(["a", "b"]), ["a", "b", "doubtful"]).offsets
    assert -2 < offsets[0][1] < -1 and 1 < offsets[1][1] < 2  # a voxel is half a logit


def test_one_trusted_case_is_not_enough_to_calibrate():
    assert calibrate(TwoFolds(["a"]), ["a", "b", "doubtful"]).offsets == {}


def notes(calibration: Calibration, structures: list[Structure]) -> list[str]:
    return lean_notes(size_errors(calibration, structures))


STRUCTURES = [Structure("liver", (1,), 1), Structure("spleen", (2,), 2)]


def test_offsets_by_structure():
    leans = np.array([0, 0.4, 0.3])
    found = Calibration({0: np.array([0, -1.5, 0]), 1: np.array([0, 0.5, 0])}, {0: leans, 1: leans})
    assert by_structure(found, STRUCTURES) == {"liver": [-1.5, 0.5]}
    assert size_errors(found, STRUCTURES) == pytest.approx({"liver": 0.5})
    assert by_structure(Calibration(), STRUCTURES) == {}


def test_notes_name_the_structures_and_by_how_much():
    found = Calibration({0: np.array([0, -1.2, 0.2])}, {0: np.array([0, 0.4, -0.4])})
    larger, smaller = notes(found, STRUCTURES)
    assert "liver were mostly larger" in larger and "by 50 %" in larger and "undertrained" in larger
    assert "spleen were mostly smaller" in smaller and "by 33 %" in smaller


def test_no_note_where_sizes_hardly_differ():
    found = calibrate(TwoFolds(["a", "b"]), ["a", "b", "doubtful"])
    for fold in (0, 1):  # 3 % in volume, although more than a logit
        one = Calibration({fold: found.offsets[fold]}, {fold: found.leans[fold]})
        assert abs(found.leans[fold][1]) == pytest.approx(0.03, abs=0.005)
        assert notes(one, TwoFolds.structures) == []
    assert notes(calibrate(TwoFolds(["a"]), ["a", "b"]), TwoFolds.structures) == []


def test_label_of_another_shape_names_the_case():
    class Cut(TwoFolds):
        def predict(self, case, folds, learned):
            found = super().predict(case, folds, learned)
            if case == "b":
                found.given, found.valid = found.given[..., 1:], found.valid[..., 1:]
            return found

    with pytest.raises(ValueError, match="^Case b: The label has the shape .*expected that of the image"):
        calibrate(Cut(["a", "b"]), ["a", "b"])


def test_regions_are_compared_by_region():
    given = np.array([[[0, 1, 2, 9]]], np.int16)
    structures = [Structure("core", (2,), 1), Structure("whole", (1, 2), 0)]
    prediction = CasePrediction(given, given, np.full((2, 1, 1, 4), 0.5), given != 9, {}, True)
    case = case_sample(prediction, structures, regions=True)
    assert case.given.tolist() == [2, 1]
    assert case.label.tolist() == [[False, True, True], [False, False, True]]
